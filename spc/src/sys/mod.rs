//! Every use of `unsafe` in the launcher: what the safe wrappers of nix and rustix leave out.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `MOUNT_ATTR_RDONLY` of mount_setattr(2).
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;

/// Sets attributes of a detached mount, mount_setattr(2); Linux 5.12.
///
/// # Errors
/// The errno of the call.
pub fn mount_setattr(mount: impl AsFd, set: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated constant and `attr` lives, with its size, across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets a command's program inherit this descriptor, which nothing else of ours passes on. If it is
/// closed by then, the command is not started.
pub fn inherit(command: &mut Command, fd: RawFd) -> &mut Command {
    // SAFETY: between fork and exec one async-signal-safe system call is made, on a number: a descriptor
    // that is not open is an error of the call.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(fd);
            Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
        })
    }
}

/// Makes the kernel tell a command's program, and all that this runs, that it has no such system call.
pub fn without_call(command: &mut Command, number: libc::c_long) -> &mut Command {
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // struct seccomp_data begins with the number, then comes the architecture that numbers it.
    let filter = [
        step(LOAD, 0, 0, 4),
        step(EQUAL, 0, 3, ARCH),
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, number as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: between fork and exec one async-signal-safe system call is made; the filter lives, with its length,
    // across the call.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, 0);
            match libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

/// Makes a child a session of its own, with no signal blocked, that the kernel kills when the thread
/// that starts it ends.
pub fn tie_to_parent(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only async-signal-safe system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            // The mask is inherited, and ours holds termination signals back.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// Makes a child a session of its own, with no signal blocked and no descriptor of ours but its standard ones, that
/// outlives the process that starts it.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            // We may have been started with descriptors that are not marked so.
            let cloexec = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
            if libc::close_range(3, libc::c_uint::MAX, cloexec) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_taken_away_is_unknown_and_others_are_not() {
        // Without CAP_SYS_ADMIN there are no filters.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let without = |number: libc::c_long| {
            let mut command = Command::new("nice");
            command.args(["-n", "1", "true"]);
            let output = without_call(&mut command, number).output().unwrap();
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert_eq!(without(libc::SYS_add_key), "");
        let unknown = without(libc::SYS_setpriority);
        assert!(unknown.contains("Function not implemented"), "{unknown}");
    }
}
