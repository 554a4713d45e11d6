//! Runs a tool of the container to its end: bounded in time, its output kept.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::error::{Cause, Error, Result};
use crate::helper::secret_fds::SecretFds;
use crate::host::confinement;
use crate::process::interrupts::Interrupts;
use crate::process::marks;
use crate::process::output::Output;
use crate::process::wait::{Ended, describe, wait};
use crate::{log, sys};

/// A program to run, and what it is given.
pub struct Tool<'a> {
    /// Its name.
    pub program: &'a str,
    /// Its arguments.
    pub args: &'a [String],
    /// What it reads, or [`STDIN`] among its arguments stands for.
    pub stdin: Option<OwnedFd>,
    /// Its secrets, and what it must not see of ours.
    pub secret_fds: Option<&'a SecretFds<'a>>,
    /// Mark for its processes; none for what outlives a mount.
    pub id: Option<&'a str>,
    /// How long it may take.
    pub deadline: Instant,
}

/// A path at which a program opens what it was given as its standard input, as it likes: a device of the host has no
/// node in the container, and needs none.
pub const STDIN: &str = "/proc/self/fd/0";

/// This very program, for what must not hold us up.
pub const OURSELVES: &str = "/proc/self/exe";

/// How a tool ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: i32,
    /// What it printed, the end of it.
    pub text: String,
}

impl Done {
    /// The last lines it printed.
    pub fn lines(&self) -> Vec<String> {
        let lines: Vec<&str> = self.text.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(8)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}

impl Tool<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// It is not there, cannot be started, dies by a signal, takes too long, or a signal stops us.
    pub fn run(self, interrupts: Option<&Interrupts>) -> Result<Done> {
        let fail = |cause: Cause| Error::mount(format!("{} failed", self.program)).because(cause);
        let found = match self.program {
            OURSELVES => Some(OURSELVES.into()),
            name => confinement::program(&[name]),
        };
        let Some(path) = found else {
            return Err(
                Error::system(format!("this container has no program {}", self.program))
                    .hint("install it in the image"),
            );
        };
        let output = Output::new().map_err(|e| fail(e.into()))?;
        let mut command = Command::new(&path);
        command
            .args(self.args)
            .env("LC_ALL", "C")
            .stdin(self.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(output.handle().map_err(|e| fail(e.into()))?)
            .stderr(output.handle().map_err(|e| fail(e.into()))?);
        log::hand_on(&mut command);
        if let Some(id) = self.id {
            command.env(marks::MARK, id);
        }
        if let Some(secret_fds) = self.secret_fds {
            secret_fds.apply(&mut command)?;
        }
        tracing::debug!(tool = %self.program, argv = ?self.args, "running");
        let started = Instant::now();
        let child = sys::tie_to_parent(&mut command)
            .spawn()
            .map_err(|e| fail(e.into()))?;
        let ended = wait(
            Pid::from_child(&child),
            self.program,
            started,
            self.deadline,
            interrupts,
        );
        output.seal();
        let text = output.text();
        let ended = match ended {
            Ok(status) => describe(status),
            Err(error) => return Err(error),
        };
        tracing::debug!(tool = %self.program, ?ended, "ended");
        match ended {
            Ended::Code(code) => Ok(Done { code, text }),
            Ended::Signal(signal) => Err(fail(format!("killed by signal {signal}").into())),
        }
    }
}

/// Now and a while.
pub fn within(seconds: u64, deadline: Instant) -> Instant {
    deadline.min(Instant::now() + Duration::from_secs(seconds))
}
