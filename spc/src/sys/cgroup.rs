//! Start of a program in a cgroup, so that already its first instruction runs there (cgroups(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `CLONE_INTO_CGROUP` of `<linux/sched.h>`, Linux 5.7. The type of the constant in libc is too
/// small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Length of the child's report in bytes: its process id (4, native order), and 1 if it is in the
/// cgroup, else 0.
pub const REPORT_LEN: usize = 5;

/// Makes the program of a command start in a cgroup.
///
/// The child writes [`REPORT_LEN`] bytes to `report`. A child outside of the cgroup waits for a
/// byte from `go` before its program starts, so that another process can move it meanwhile. The
/// start fails with ECANCELED if `go` ends first. `go_writer` is the number of the other end of
/// `go`.
///
/// The process that runs the program is not always the child that [`Command`] knows: the child may
/// have created it in the cgroup and exited.
pub fn start_in_cgroup(
    command: &mut Command,
    cgroup: Option<OwnedFd>,
    report: OwnedFd,
    go: OwnedFd,
    go_writer: RawFd,
) -> &mut Command {
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls. It owns
    // the descriptors that it uses, and `go_writer` is the child's own copy, which nothing else in
    // the child uses.
    unsafe {
        command.pre_exec(move || {
            // A copy that stays open in the child would keep `go` from ending.
            libc::close(go_writer);
            let in_cgroup = cgroup.as_ref().is_some_and(continue_in);
            let [a, b, c, d] = libc::getpid().to_ne_bytes();
            let bytes: [u8; REPORT_LEN] = [a, b, c, d, in_cgroup.into()];
            rustix::io::write(&report, &bytes)?;
            if in_cgroup {
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

/// Creates a copy of this process in a cgroup (clone3(2)), with the same parent, and exits. The
/// copy returns true. If clone3(2) fails, this process returns false and nothing has changed.
///
/// Only a child without other threads may call it, before its program starts.
///
/// A move into the cgroup would take about 10 ms, because the kernel waits until no processor is in
/// a fork or an exit. Further moves wait for the first.
fn continue_in(cgroup: &OwnedFd) -> bool {
    let flags = CLONE_INTO_CGROUP | libc::CLONE_PARENT as u64;
    let cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    // `struct clone_args` has eleven fields: `flags` is the first, `cgroup` the last.
    let args: [u64; 11] = [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, cgroup];
    // SAFETY: the structure has the kernel's layout and lives, with its size, until the call
    // returns. The new process has a copy of this one's memory and returns from the same call; this
    // process exits at once.
    unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) {
            0 => true,
            -1 => false,
            _ => libc::_exit(0),
        }
    }
}
