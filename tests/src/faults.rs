//! Faults of the kernel: a system call of a command, or of what it starts, is not made and fails, or is held up, or its
//! caller is killed in it.
//!
//! This is the tracer of `lab step`, with a longer list of system calls. It needs no library in the program, so it
//! reaches the launcher, which is static, and helpers that make their system calls themselves.

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

/// A system call, and the errnos that a sound program may get of it on a machine in trouble: no memory, no descriptor, no
/// room, no right, no such call, a bad disk, a signal.
type Call = (libc::c_long, &'static str, &'static [i32]);

/// What may fail. What cannot (getpid) or what nobody looks at (close) is not here.
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
    // By which std hears that a program began, from a local socket: the kernel needs no memory for that, and std waits for
    // the program to end when it hears of any error.
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
    // statmount(2) and listmount(2) have these numbers everywhere; libc does not know them yet on every target.
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

/// The names that the launcher and the shim's children have; where it runs itself it has that of a link in procfs.
const OURS: [&str; 3] = ["spc", "spc-crossing", "exe"];

/// A fault in a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The system call that it is in.
    pub call: String,
    /// The how manieth of these, from 1 on.
    pub at: usize,
    /// What happens.
    pub act: Act,
}

/// What happens in a faulty system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It is not made, and fails with this errno.
    Fail(i32),
    /// It is made after this time.
    Delay(Duration),
    /// It is not made, and its process is killed.
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
    /// Runs a command as [`Host::step`] does, with faults in it; those of what it starts count as well, if the family does.
    pub fn fault(
        &self,
        pid: i32,
        argv: &[&str],
        faults: &[Fault],
        family: bool,
    ) -> Result<Stepped> {
        self.with_faults(&["step"], pid, argv, faults, family)
    }

    /// The same, and it tells of every system call that may fail, before and after the faults: `PROGRAM SYSTEM_CALL`.
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

/// The errnos that a system call may fail with, the likeliest first.
pub fn errnos(call: &str) -> &'static [i32] {
    let known = CALLS.iter().find(|(_, name, _)| *name == call);
    known.map_or(&[], |(.., errnos)| *errnos)
}

/// The name of a system call, if it is one that may fail.
pub(crate) fn name(number: libc::c_long) -> Option<&'static str> {
    let known = CALLS.iter().find(|(call, ..)| *call == number);
    known.map(|(_, name, _)| *name)
}

/// Whether a descendant's system call counts. Loaders, shells and daemons make too many.
pub(crate) fn counts(program: &str, call: &str) -> bool {
    let starts = ["clone", "clone3", "fork", "vfork"];
    OURS.contains(&program) || FAMILY_STEPS.contains(&call) || starts.contains(&call)
}

/// At the entry of a system call: keeps the kernel from making it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn begin(thread: Pid) -> Result<()> {
    change(thread, |registers| registers.orig_rax = u64::MAX)
}

/// At its exit: it has failed with this errno.
#[cfg(target_arch = "x86_64")]
pub(crate) fn end(thread: Pid, errno: i32) -> Result<()> {
    change(thread, |registers| {
        registers.rax = i64::from(-errno).cast_unsigned()
    })
}

/// Changes the registers of a thread; one that was killed meanwhile has none.
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

/// At the entry of a system call: keeps the kernel from making it.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn begin(_: Pid) -> Result<()> {
    bail!("system calls can be made to fail on x86_64 only")
}

/// At its exit.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn end(_: Pid, _: i32) -> Result<()> {
    Ok(())
}
