//! Starting a program in a cgroup, from its first instruction on.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `CLONE_INTO_CGROUP` of `<linux/sched.h>`, Linux 5.7, which libc has as a number that is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a program that is held back tells: its process id, and whether it is in its cgroup.
pub const TOLD: usize = 5;

/// Has a command's program begin in a cgroup. Where the kernel cannot make a process there, it is held back, once forked,
/// until somebody has moved it. Its process tells `told` which it is. One that is held back goes on when it has read a byte
/// from `go`; if the other end of that, which has this number, is closed, it is not started.
///
/// The process need not be the one that [`Command`] knows: that one may have made it and ended.
pub fn begin_in(
    command: &mut Command,
    cgroup: Option<OwnedFd>,
    told: OwnedFd,
    go: OwnedFd,
    other_end: RawFd,
) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on descriptors that the closure owns,
    // and on the child's own copy of one that nothing else in the child knows.
    unsafe {
        command.pre_exec(move || {
            // With our own copy of it open, its end would never be seen.
            libc::close(other_end);
            let there = cgroup.as_ref().is_some_and(go_on_in);
            let [a, b, c, d] = libc::getpid().to_ne_bytes();
            let tells: [u8; TOLD] = [a, b, c, d, there.into()];
            rustix::io::write(&told, &tells)?;
            if there {
                return Ok(());
            }
            let mut byte = [0_u8];
            loop {
                match rustix::io::read(&go, &mut byte) {
                    Ok(1) => return Ok(()),
                    Ok(_) => return Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}

/// Goes on as a process that begins in a cgroup, with the same parent. Moving this one there would wait until no processor
/// is in the middle of a fork or an exit, for about ten milliseconds, and have all others that want to move wait for it.
///
/// Only for a child that has no other thread, before its program. False if the kernel does not make one, and nothing has
/// changed.
fn go_on_in(cgroup: &OwnedFd) -> bool {
    let flags = CLONE_INTO_CGROUP | libc::CLONE_PARENT as u64;
    let cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    // `struct clone_args`: of eleven fields the first and the last.
    let args: [u64; 11] = [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, cgroup];
    // SAFETY: the structure is laid out as the kernel has it and lives, with its size, across the call. What is made has a
    // copy of this process's memory and goes on where this one does, which does not go on.
    unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) {
            0 => true,
            -1 => false,
            _ => libc::_exit(0),
        }
    }
}
