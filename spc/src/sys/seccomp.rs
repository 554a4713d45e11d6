//! Seccomp filters (seccomp(2)): system calls that fail in a program, and calls that another
//! process makes in its place (seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// First number of the x32 calls, which exist beside those of x86_64.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`: number of the call, architecture, arguments of 8 bytes each.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Filter of system calls. Calls without a rule are allowed.
#[derive(Debug)]
pub struct Filter {
    steps: Vec<libc::sock_filter>,
}

impl Filter {
    /// Returns a filter that allows every call of this architecture. Calls of other architectures
    /// get `foreign`: [`Filter::ALLOW`], or an errno by [`Filter::errno`].
    pub fn new(foreign: u32) -> Self {
        let mut filter = Self { steps: Vec::new() };
        filter.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, ARCHITECTURE);
        filter.push(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCH);
        filter.push(BPF_RET | BPF_K, 0, 0, foreign);
        filter.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, NUMBER);
        if cfg!(target_arch = "x86_64") {
            filter.push(BPF_JMP | BPF_JGE | BPF_K, 0, 1, X32);
            filter.push(BPF_RET | BPF_K, 0, 0, foreign);
        }
        filter
    }

    /// Action that makes the call.
    pub const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    /// Action that hands the call to the listener.
    pub const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

    /// Returns the action that fails with an errno.
    pub const fn errno(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
    }

    /// Adds a rule for a call.
    pub fn rule(&mut self, number: libc::c_long, action: u32) {
        self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number as u32);
        self.push(BPF_RET | BPF_K, 0, 0, action);
    }

    /// Adds a rule for a call one of whose arguments has one of these bits. The first argument has
    /// the number 0. Only its lower 32 bits count.
    pub fn rule_for_flags(&mut self, number: libc::c_long, argument: u32, flags: u32, action: u32) {
        self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, number as u32);
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGUMENTS + 8 * argument);
        self.push(BPF_JMP | BPF_JSET | BPF_K, 0, 1, flags);
        self.push(BPF_RET | BPF_K, 0, 0, action);
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, NUMBER);
    }

    /// Adds a rule for a call whose first argument is none of these numbers. Only its lower 32 bits
    /// count.
    pub fn rule_unless(&mut self, number: libc::c_long, allowed: &[u32], action: u32) {
        let count = allowed.len() as u8;
        self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, count + 3, number as u32);
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGUMENTS);
        for (left, value) in (1..=count).rev().zip(allowed) {
            self.push(BPF_JMP | BPF_JEQ | BPF_K, left, 0, *value);
        }
        self.push(BPF_RET | BPF_K, 0, 0, action);
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, NUMBER);
    }

    /// Adds a rule for a call whose arguments with these numbers have these values. Only their lower
    /// 32 bits count.
    pub fn rule_for_values(&mut self, number: libc::c_long, values: &[(u32, u32)], action: u32) {
        let mut left = 2 * values.len() as u8;
        self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, left + 2, number as u32);
        for (argument, value) in values {
            self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGUMENTS + 8 * argument);
            left -= 2;
            self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, left + 1, *value);
        }
        self.push(BPF_RET | BPF_K, 0, 0, action);
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, NUMBER);
    }

    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        self.steps.push(libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        });
    }

    /// Installs the filter for this thread and the programs that it starts. Returns the listener if
    /// `flags` has `SECCOMP_FILTER_FLAG_NEW_LISTENER`. Async-signal-safe.
    fn install(&self, flags: libc::c_ulong) -> io::Result<libc::c_long> {
        let allow = libc::sock_filter {
            code: (BPF_RET | BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: Self::ALLOW,
        };
        debug_assert!(matches!(self.steps.last(), Some(last) if last.code == allow.code));
        let program = libc::sock_fprog {
            len: self.steps.len() as u16,
            filter: self.steps.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the filter lives, with its length, until the call returns, and the kernel copies
        // it.
        match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) } {
            -1 => Err(io::Error::last_os_error()),
            done => Ok(done),
        }
    }

    /// Ends the filter: calls without a rule are allowed.
    fn end(mut self) -> Self {
        self.push(BPF_RET | BPF_K, 0, 0, Self::ALLOW);
        self
    }

    /// Installs the filter for this thread and the programs that it starts. Returns the listener
    /// for the calls with the action [`Filter::NOTIFY`]. They fail with ENOSYS once it is closed.
    ///
    /// # Errors
    /// Returns the errno of the call: EBUSY if there is another listener.
    pub fn install_with_listener(self) -> io::Result<OwnedFd> {
        let fd = self.end().install(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened this descriptor for this function.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Makes a system call fail with ENOSYS in the program of a command and in all its children.
pub fn deny_syscall(command: &mut Command, number: libc::c_long) -> &mut Command {
    let mut filter = Filter::new(Filter::ALLOW);
    filter.rule(number, Filter::errno(libc::ENOSYS));
    let filter = filter.end();
    // SAFETY: between fork and exec the closure makes one async-signal-safe system call, with a
    // filter that it owns.
    unsafe { command.pre_exec(move || filter.install(0).map(drop)) }
}

/// Call that waits for the reply of the listener.
#[derive(Clone, Copy, Debug)]
pub struct PendingCall {
    /// Cookie of the call.
    id: u64,
    /// Thread that made the call, in the PID namespace of this process.
    pub thread: i32,
    /// Arguments of the call. Pointers are addresses in that thread's memory.
    pub args: [u64; 6],
}

/// Receives the next call from a listener.
///
/// # Errors
/// Returns the errno of the ioctl: EINTR, or ENOENT if the caller was killed meanwhile.
pub fn receive(listener: impl AsFd) -> io::Result<PendingCall> {
    let listener = listener.as_fd().as_raw_fd();
    // SAFETY: the structure consists of numbers, and the kernel wants it zeroed.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives, with the size that is in the request, until the call returns.
    let done = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PendingCall {
        id: call.id,
        thread: call.pid.cast_signed(),
        args: call.data.args,
    })
}

/// Returns whether a call still waits, and so its thread still is the one that made it.
pub fn is_pending(listener: impl AsFd, call: &PendingCall) -> bool {
    let listener = listener.as_fd().as_raw_fd();
    // SAFETY: the number lives, with the size that is in the request, until the call returns.
    let done = unsafe {
        libc::ioctl(
            listener,
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            &raw const call.id,
        )
    };
    done == 0
}

/// Lets a call return: 0, or -1 with an errno.
///
/// # Errors
/// Returns the errno of the ioctl: ENOENT if the caller was killed meanwhile.
pub fn reply(listener: impl AsFd, call: &PendingCall, result: io::Result<()>) -> io::Result<()> {
    let listener = listener.as_fd().as_raw_fd();
    let error = result.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EPERM), |()| 0);
    let reply = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: -error,
        flags: 0,
    };
    // SAFETY: the structure lives, with the size that is in the request, until the call returns.
    let done = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const reply) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_syscall_fails_with_enosys_and_others_work() {
        // Installation of a filter needs CAP_SYS_ADMIN.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let stderr_without = |number: libc::c_long| {
            let mut command = Command::new("nice");
            command.args(["-n", "1", "true"]);
            let output = deny_syscall(&mut command, number).output().unwrap();
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert_eq!(stderr_without(libc::SYS_add_key), "");
        let stderr = stderr_without(libc::SYS_setpriority);
        assert!(stderr.contains("Function not implemented"), "{stderr}");
    }
}
