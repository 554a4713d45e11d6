//! What may never come back from the host is done by a process of its own.
//!
//! A thread that waits for a dead server may wait where no signal ends it, and then its process does not end either. So
//! the process that asks is never the one that waits: an errand that is late is left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};
use crate::process::cancel::CancelToken;
use crate::process::marks;
use crate::sys;

/// How often whoever waits is asked whether to go on.
const ASK: Duration = Duration::from_millis(20);

/// How long one that was killed may take to be gone; one that waits in the kernel is not.
const END: Duration = Duration::from_millis(20);

/// An errand on its way: a command of this program's own. Dropping it ends it, or leaves it behind.
pub struct Subprocess {
    child: Child,
    /// It ends with us.
    tied: bool,
    said: ChildStdout,
    unread: Vec<u8>,
}

/// What came of waiting for an errand.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// It said this line.
    Line(String),
    /// It has nothing more to say.
    Eof,
    /// It said nothing in time.
    Timeout,
}

impl Subprocess {
    /// Sends a command of this program, with this input.
    ///
    /// # Errors
    /// No process can be made.
    pub fn spawn_tied<S: AsRef<OsStr>>(words: &[S], input: &[u8]) -> Result<Self> {
        Self::start(words, input_of(input)?, true)
    }

    /// As [`Errand::send`], for one that has a limit of its own and is never ended by us.
    ///
    /// # Errors
    /// No process can be made.
    pub fn spawn_detached<S: AsRef<OsStr>>(words: &[S], input: &[u8]) -> Result<Self> {
        Self::start(words, input_of(input)?, false)
    }

    /// As [`Errand::send_off`], for one whose input is not known yet: [`Errand::give`] it.
    ///
    /// # Errors
    /// No process can be made.
    pub fn spawn_waiting<S: AsRef<OsStr>>(words: &[S]) -> Result<Self> {
        Self::start(words, Stdio::piped(), false)
    }

    /// Gives its input to one that was sent ahead.
    pub fn send_input(&mut self, input: &[u8]) {
        if let Some(mut stdin) = self.child.stdin.take() {
            // One that has died says nothing, either.
            let _ = stdin.write_all(input);
        }
    }

    fn start<S: AsRef<OsStr>>(words: &[S], input: Stdio, tied: bool) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(words)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Whoever holds the target's lock has it only as long as it lives.
        let command = match tied {
            true => sys::tie_to_parent(&mut command),
            false => sys::detach(&mut command),
        };
        let mut child = command.spawn().map_err(fail)?;
        let Some(said) = child.stdout.take() else {
            return Err(fail(std::io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            child,
            tied,
            said,
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
            let timeout = Timespec::try_from(left.min(ASK)).unwrap_or_default();
            let ready = {
                let mut fds = [PollFd::new(&self.said, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&timeout)), Ok(1))
            };
            let mut buffer = [0; 16 * 1024];
            if ready {
                match self.said.read(&mut buffer) {
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

fn fail(error: std::io::Error) -> Error {
    Error::system("cannot start a look at the host").because(error)
}

/// A file in memory with this in it, read from its beginning.
fn input_of(input: &[u8]) -> Result<Stdio> {
    let made = memfd_create("errand", MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    let mut file = File::from(made);
    let written = file.write_all(input).and_then(|()| file.rewind());
    written.map_err(fail)?;
    Ok(file.into())
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        // One that nobody needs has waited for its input.
        drop(self.child.stdin.take());
        if self.tied {
            // It may have ended by itself.
            let _ = self.child.kill();
        }
        if let Ok(pidfd) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            marks::ended(&pidfd, END);
        }
        let _ = self.child.try_wait();
    }
}
