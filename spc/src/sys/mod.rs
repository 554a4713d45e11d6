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
