//! Faults in system calls of a command or its descendants: a call fails without being made, is
//! delayed, or its caller is killed in it.
//!
//! The tracer of `lab step` injects them, with a longer list of system calls. A tracer needs no
//! library in the program. So faults reach the launcher, which is static, and helpers that make
//! system calls directly.

use anyhow::{Result, bail};
use libc::{
    E2BIG, EACCES, EAGAIN, EBUSY, EINTR, EINVAL, EIO, ELOOP, EMFILE, ENFILE, ENODEV, ENOENT,
    ENOLCK, ENOMEM, ENOSPC, ENOSYS, EPERM, EROFS, ESRCH, ETXTBSY,
};
use nix::unistd::Pid;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::host::Host;
use crate::step::{FAMILY_STEPS, Stepped};

/// A system call and its errnos on a machine in trouble: no memory, descriptor, space, permission
/// or support, a bad disk, a signal.
type Call = (libc::c_long, &'static str, &'static [i32]);

/// System calls that may fail. Calls that cannot fail (getpid) and calls whose result nobody checks
/// (close) are left out.
const CALLS: &[Call] = &[
    (libc::SYS_bind, "bind", &[ENOSPC, EACCES]),
    (libc::SYS_chdir, "chdir", &[EACCES, EIO]),
    (libc::SYS_clone, "clone", &[EAGAIN, ENOMEM]),
    (libc::SYS_clone3, "clone3", &[EAGAIN, ENOMEM]),
    (libc::SYS_connect, "connect", &[EACCES, EAGAIN]),
    (
        libc::SYS_execve,
        "execve",
        &[ENOMEM, ENOENT, EACCES, E2BIG, ETXTBSY],
    ),
    (libc::SYS_fchdir, "fchdir", &[EACCES]),
    (libc::SYS_fchmod, "fchmod", &[EROFS]),
    (libc::SYS_fcntl, "fcntl", &[ENOLCK, EMFILE, EINTR]),
    (libc::SYS_flock, "flock", &[ENOLCK, EINTR]),
    (
        libc::SYS_fsconfig,
        "fsconfig",
        &[ENOMEM, EINVAL, EBUSY, EIO],
    ),
    (libc::SYS_fsmount, "fsmount", &[ENOMEM, EPERM, EBUSY]),
    (libc::SYS_fsopen, "fsopen", &[ENODEV, EPERM, EMFILE, ENOSYS]),
    (libc::SYS_fstat, "fstat", &[EIO]),
    (libc::SYS_fsync, "fsync", &[EIO, ENOSPC]),
    (libc::SYS_getdents64, "getdents64", &[EIO]),
    (libc::SYS_ioctl, "ioctl", &[EIO]),
    (libc::SYS_kill, "kill", &[EPERM, ESRCH]),
    (libc::SYS_memfd_create, "memfd_create", &[EMFILE, ENOMEM]),
    (libc::SYS_mkdirat, "mkdirat", &[ENOSPC, EROFS, EACCES]),
    (libc::SYS_mmap, "mmap", &[ENOMEM]),
    (
        libc::SYS_mount,
        "mount",
        &[EBUSY, EPERM, ENOMEM, ENODEV, EINVAL],
    ),
    (
        libc::SYS_mount_setattr,
        "mount_setattr",
        &[ENOSYS, EPERM, EINVAL],
    ),
    (
        libc::SYS_move_mount,
        "move_mount",
        &[EBUSY, ENOMEM, EPERM, ELOOP, EINVAL],
    ),
    (libc::SYS_newfstatat, "newfstatat", &[EIO, EACCES]),
    (
        libc::SYS_openat,
        "openat",
        &[EMFILE, EACCES, EIO, ENFILE, ENOMEM],
    ),
    (
        libc::SYS_openat2,
        "openat2",
        &[EMFILE, ENOSYS, EAGAIN, EACCES],
    ),
    (
        libc::SYS_open_tree,
        "open_tree",
        &[EMFILE, EPERM, ENOMEM, ENOSYS],
    ),
    (libc::SYS_pidfd_open, "pidfd_open", &[EMFILE, ENOSYS]),
    (
        libc::SYS_pidfd_send_signal,
        "pidfd_send_signal",
        &[EPERM, ENOSYS],
    ),
    (libc::SYS_pipe2, "pipe2", &[EMFILE, ENFILE]),
    (libc::SYS_ppoll, "ppoll", &[EINTR, ENOMEM]),
    (libc::SYS_prctl, "prctl", &[EINVAL]),
    (libc::SYS_pread64, "pread64", &[EIO]),
    (libc::SYS_read, "read", &[EIO, EINTR]),
    (libc::SYS_readlinkat, "readlinkat", &[EIO, EACCES]),
    // std learns from a local socket that a program has started. The kernel needs no memory for it.
    // After any error, std waits for the end of the program.
    (libc::SYS_recvfrom, "recvfrom", &[EINTR]),
    (libc::SYS_renameat, "renameat", &[ENOSPC, EROFS, EIO]),
    (libc::SYS_renameat2, "renameat2", &[ENOSPC, EROFS, EIO]),
    (libc::SYS_sendto, "sendto", &[ENOMEM, EPERM]),
    (libc::SYS_setns, "setns", &[EPERM, ENOMEM, EINVAL]),
    (libc::SYS_socket, "socket", &[EMFILE, EACCES]),
    (libc::SYS_socketpair, "socketpair", &[EMFILE]),
    (libc::SYS_statfs, "statfs", &[EIO]),
    (libc::SYS_statx, "statx", &[EIO, EACCES, ENOMEM]),
    (libc::SYS_symlinkat, "symlinkat", &[ENOSPC, EROFS, EIO]),
    (libc::SYS_umount2, "umount2", &[EBUSY, EPERM, EINVAL]),
    (libc::SYS_unlinkat, "unlinkat", &[EROFS, EBUSY, EIO]),
    (libc::SYS_unshare, "unshare", &[EPERM, ENOMEM, ENOSPC]),
    (libc::SYS_wait4, "wait4", &[EINTR]),
    (libc::SYS_waitid, "waitid", &[EINTR]),
    (libc::SYS_write, "write", &[ENOSPC, EIO]),
    // statmount(2) and listmount(2) have the same numbers on all architectures; libc does not
    // define them on every target.
    (457, "statmount", &[ENOSYS, EPERM, ENOMEM]),
    (458, "listmount", &[ENOSYS, EPERM, ENOMEM]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork", &[EAGAIN, ENOMEM]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir", &[ENOSPC, EROFS, EACCES]),
    #[cfg(target_arch = "x86_64")]
    (
        libc::SYS_open,
        "open",
        &[EMFILE, EACCES, EIO, ENFILE, ENOMEM],
    ),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll", &[EINTR, ENOMEM]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, "readlink", &[EIO, EACCES]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename", &[ENOSPC, EROFS, EIO]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir", &[EROFS, EBUSY, EIO]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, "stat", &[EIO, EACCES]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink", &[ENOSPC, EROFS, EIO]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink", &[EROFS, EBUSY, EIO]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork", &[EAGAIN, ENOMEM]),
];

/// Process names of the launcher and of the shim's children. When the launcher runs itself through
/// procfs, its name is `exe`.
const OURS: [&str; 3] = ["spc", "spc-to", "exe"];

/// A fault in a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the system call.
    pub call: String,
    /// Number of the faulty call among calls of that name, from 1.
    pub at: usize,
    /// Effect.
    pub act: Act,
}

/// Effect of a fault on a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Fails with this errno; the kernel does not make the call.
    Fail(i32),
    /// Makes the call after this delay.
    Delay(Duration),
    /// Kills the process; the kernel does not make the call.
    Kill,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, at, act } = self;
        match act {
            Act::Fail(errno) => write!(f, "{call}:{at}:fail:{errno}"),
            Act::Delay(time) => write!(f, "{call}:{at}:delay:{}", time.as_millis()),
            Act::Kill => write!(f, "{call}:{at}:kill"),
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(':').collect();
        let (call, at, act) = match words.as_slice() {
            [call, at, "fail", errno] => (call, at, Act::Fail(errno.parse()?)),
            [call, at, "delay", time] => {
                (call, at, Act::Delay(Duration::from_millis(time.parse()?)))
            }
            [call, at, "kill"] => (call, at, Act::Kill),
            _ => bail!("not CALL:NUMBER:fail:ERRNO, CALL:NUMBER:delay:MS or CALL:NUMBER:kill"),
        };
        Ok(Self {
            call: (*call).to_owned(),
            at: at.parse()?,
            act,
        })
    }
}

impl Host<'_> {
    /// Runs a command as [`Host::step`] does, with faults. With `family`, calls of descendants
    /// count as well.
    pub fn fault(
        &self,
        pid: i32,
        argv: &[&str],
        faults: &[Fault],
        family: bool,
    ) -> Result<Stepped> {
        self.with_faults(&["step"], pid, argv, faults, family)
    }

    /// Runs a command as [`Host::fault`] does, and records every system call that may fail:
    /// `PROGRAM SYSTEM_CALL`.
    pub fn trace(
        &self,
        pid: i32,
        argv: &[&str],
        faults: &[Fault],
        family: bool,
    ) -> Result<Stepped> {
        self.with_faults(&["step", "--wide"], pid, argv, faults, family)
    }

    fn with_faults(
        &self,
        task: &[&str],
        pid: i32,
        argv: &[&str],
        faults: &[Fault],
        family: bool,
    ) -> Result<Stepped> {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let mut task = task.to_vec();
        task.extend(faults.iter().flat_map(|fault| ["--fault", fault]));
        if family {
            task.push("--family");
        }
        let mut stepped = self.in_steps(&task, pid, argv, None)?;
        stepped.killed = stepped.faults.len() == faults.len();
        Ok(stepped)
    }
}

/// Returns the errnos that a system call may fail with, the likeliest first.
pub fn errnos(call: &str) -> &'static [i32] {
    let known = CALLS.iter().find(|(_, name, _)| *name == call);
    known.map_or(&[], |(.., errnos)| *errnos)
}

/// Returns the name of a system call that may fail.
pub(crate) fn name(number: libc::c_long) -> Option<&'static str> {
    let known = CALLS.iter().find(|(call, ..)| *call == number);
    known.map(|(_, name, _)| *name)
}

/// Returns whether a descendant's system call counts. Loaders, shells and daemons make too many.
pub(crate) fn counts(program: &str, call: &str) -> bool {
    let starts = ["clone", "clone3", "fork", "vfork"];
    OURS.contains(&program) || FAMILY_STEPS.contains(&call) || starts.contains(&call)
}

/// Keeps the kernel from making the system call that a thread has just entered.
#[cfg(target_arch = "x86_64")]
pub(crate) fn begin(thread: Pid) -> Result<()> {
    change(thread, |registers| registers.orig_rax = u64::MAX)
}

/// Sets the errno of the system call that a thread is about to leave.
#[cfg(target_arch = "x86_64")]
pub(crate) fn end(thread: Pid, errno: i32) -> Result<()> {
    change(thread, |registers| {
        registers.rax = i64::from(-errno).cast_unsigned()
    })
}

/// Changes the registers of a thread, if the thread still lives.
#[cfg(target_arch = "x86_64")]
fn change(thread: Pid, how: impl FnOnce(&mut libc::user_regs_struct)) -> Result<()> {
    use nix::{errno::Errno, sys::ptrace};
    let changed = ptrace::getregs(thread).and_then(|mut registers| {
        how(&mut registers);
        ptrace::setregs(thread, registers)
    });
    match changed {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps the kernel from making the system call that a thread has just entered.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn begin(_: Pid) -> Result<()> {
    bail!("system calls can be made to fail on x86_64 only")
}

/// Sets the errno of the system call that a thread is about to leave.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn end(_: Pid, _: i32) -> Result<()> {
    Ok(())
}
