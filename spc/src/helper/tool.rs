//! Runs a tool of the container to its end, with a time limit, and keeps its output.

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

/// Program to run, with its arguments and input.
pub struct Tool<'a> {
    /// File name, or [`OWN_PROGRAM`].
    pub program: &'a str,
    /// Arguments.
    pub args: &'a [String],
    /// Standard input; the argument [`STDIN`] names it as a file.
    pub stdin: Option<OwnedFd>,
    /// Secrets for the program, and variables to remove from its environment.
    pub secret_fds: Option<&'a SecretFds<'a>>,
    /// Id of the mount that its processes are marked with; none if they may outlive the mount.
    pub id: Option<&'a str>,
    /// Time limit.
    pub deadline: Instant,
}

/// Path by which a program opens its standard input. Thus a device of the host needs no device node
/// in the container.
pub const STDIN: &str = "/proc/self/fd/0";

/// Path of spc itself, for subcommands that may block.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Exit code and output of a tool.
#[derive(Debug)]
pub struct ToolOutput {
    /// Exit code.
    pub code: i32,
    /// End of its output: at most 64 KiB of stdout and stderr together.
    pub text: String,
}

impl ToolOutput {
    /// Returns the last 8 lines of the output that are not blank, without the usage text that some
    /// programs print after their error.
    pub fn lines(&self) -> Vec<String> {
        let is_usage = |line: &&str| line.to_ascii_lowercase().starts_with("usage:");
        let all = self.text.lines().filter(|line| !line.trim().is_empty());
        let error: Vec<&str> = all.clone().take_while(|line| !is_usage(line)).collect();
        let lines = match error.is_empty() {
            true => all.collect(),
            false => error,
        };
        lines[lines.len().saturating_sub(8)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}

impl Tool<'_> {
    /// Runs the tool to its end, with `LC_ALL=C`.
    ///
    /// # Errors
    /// The tool is not installed, cannot be started, is killed by a signal or exceeds its limit, or
    /// spc receives a termination signal.
    pub fn run(self, interrupts: Option<&Interrupts>) -> Result<ToolOutput> {
        let fail = |cause: Cause| Error::mount(format!("{} failed", self.program)).because(cause);
        let path = match self.program {
            OWN_PROGRAM => Some(OWN_PROGRAM.into()),
            name => confinement::find_program(&[name]),
        };
        let Some(path) = path else {
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
        log::pass_request(&mut command);
        if let Some(id) = self.id {
            marks::mark(&mut command, id);
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
            Ended::Code(code) => Ok(ToolOutput { code, text }),
            Ended::Signal(signal) => Err(fail(format!("killed by signal {signal}").into())),
        }
    }
}

/// Returns the earlier of `deadline` and `seconds` from now.
pub fn earlier_deadline(seconds: u64, deadline: Instant) -> Instant {
    deadline.min(Instant::now() + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_after_an_error_is_left_out() {
        let lines = |text: &str| {
            let text = text.to_owned();
            ToolOutput { code: 1, text }.lines()
        };
        assert_eq!(lines("too small\n\nUsage: mkfs\n-a\n"), ["too small"]);
        assert_eq!(lines("Usage: mkfs\n-a\n"), ["Usage: mkfs", "-a"]);
        assert_eq!(lines(&"x\n".repeat(20)).len(), 8);
    }
}
