//! Subprocesses of spc for system calls that may block forever.
//!
//! A system call on a dead file system can block in uninterruptible sleep, and then the process
//! cannot exit either. So spc makes such calls in a subprocess, waits with a time limit, and leaves
//! a blocked subprocess behind.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};
use crate::process::cancel::CancelToken;
use crate::process::{marks, memfd};
use crate::sys;

/// Interval at which a wait checks for cancellation.
const CANCEL_CHECK: Duration = Duration::from_millis(20);

/// Time for a killed subprocess to exit. A subprocess that is blocked in the kernel is left behind.
const EXIT_LIMIT: Duration = Duration::from_millis(20);

/// Running subcommand of spc. Dropping it kills the subprocess if it is tied to this process.
pub struct Subprocess {
    child: Child,
    /// The kernel kills the subprocess when this process exits.
    tied: bool,
    stdout: ChildStdout,
    /// Output that was read, but not yet returned as a line.
    unread: Vec<u8>,
}

/// Result of waiting for a line of a subprocess's output.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Line of output, without the newline.
    Line(String),
    /// End of the output.
    Eof,
    /// The deadline passed without a complete line.
    Timeout,
}

impl Subprocess {
    /// Starts spc with arguments and input for stdin, as a process that the kernel kills when this
    /// process exits.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_tied<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> Result<Self> {
        Self::start(args, input_of(input)?, true)
    }

    /// Starts spc with arguments and input for stdin, as a process that outlives this one. The
    /// subcommand must have a time limit of its own.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_detached<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> Result<Self> {
        Self::start(args, input_of(input)?, false)
    }

    /// Does the same as [`spawn_detached`](Self::spawn_detached), but the input follows later by
    /// [`send_input`](Self::send_input).
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_waiting<S: AsRef<OsStr>>(args: &[S]) -> Result<Self> {
        Self::start(args, Stdio::piped(), false)
    }

    /// Sends the input to a subprocess from [`spawn_waiting`](Self::spawn_waiting).
    pub fn send_input(&mut self, input: &[u8]) {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A subprocess that has died shows as the end of its output.
            let _ = stdin.write_all(input);
        }
    }

    fn start<S: AsRef<OsStr>>(args: &[S], input: Stdio, tied: bool) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(args)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // A tied subprocess works under a lock of this process, which ends with this process.
        let command = match tied {
            true => sys::tie_in_group(&mut command),
            false => sys::detach(&mut command),
        };
        let mut child = command.spawn().map_err(fail)?;
        let Some(stdout) = child.stdout.take() else {
            return Err(fail(std::io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            child,
            tied,
            stdout,
            unread: Vec::new(),
        })
    }

    /// Returns the next line of its output, waiting until `cancel` ends the wait.
    ///
    /// # Errors
    /// The wait is cancelled.
    pub fn line(&mut self, cancel: CancelToken<'_>) -> Result<Reply> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.drain(..=end);
                let line: Vec<u8> = line.take(end).collect();
                return Ok(Reply::Line(String::from_utf8_lossy(&line).into_owned()));
            }
            let left = cancel.remaining();
            let timeout = Timespec::try_from(left.min(CANCEL_CHECK)).unwrap_or_default();
            let ready = {
                let mut fds = [PollFd::new(&self.stdout, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&timeout)), Ok(1))
            };
            let mut buffer = [0; 16 * 1024];
            if ready {
                match self.stdout.read(&mut buffer) {
                    Ok(0) | Err(_) => return Ok(Reply::Eof),
                    Ok(length) => self.unread.extend_from_slice(&buffer[..length]),
                }
            } else if left.is_zero() {
                return Ok(Reply::Timeout);
            } else {
                cancel.check()?;
            }
        }
    }
}

/// Returns the error for a subprocess that cannot be started.
fn fail(error: std::io::Error) -> Error {
    Error::system("cannot start a subprocess of spc").because(error)
}

/// Returns a file in memory with this content, for stdin.
fn input_of(input: &[u8]) -> Result<Stdio> {
    Ok(memfd::create("input", input).map_err(fail)?.into())
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        // Ends the wait of a subprocess that never got its input.
        drop(self.child.stdin.take());
        if self.tied {
            // Fails if the subprocess has exited.
            let _ = self.child.kill();
        }
        if let Ok(pidfd) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            marks::exited(&pidfd, EXIT_LIMIT);
        }
        let _ = self.child.try_wait();
    }
}
