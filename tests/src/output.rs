//! Result of a command, with an error that shows all of it.

use anyhow::{Result, bail};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// End of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Exited with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Killed with all its descendants at this time limit.
    TimedOut(Duration),
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        status.code().map_or_else(
            || Self::Signal(status.signal().unwrap_or_default()),
            Self::Code,
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut(limit) => write!(f, "still running after {limit:?}, killed"),
        }
    }
}

/// Result of a command.
#[derive(Debug, Clone)]
pub struct Output {
    /// End of the command.
    pub status: Status,
    /// Standard output until the end.
    pub stdout: Vec<u8>,
    /// Standard error until the end.
    pub stderr: Vec<u8>,
    /// Duration.
    pub elapsed: Duration,
    pub(crate) title: String,
}

impl Output {
    /// Returns whether the command exited with 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// Returns the output if the command exited with 0, else an error that shows everything.
    #[track_caller]
    pub fn ok(self) -> Result<Self> {
        self.code(0)
    }

    /// Returns the output if the command exited with this code, else an error that shows
    /// everything.
    #[track_caller]
    pub fn code(self, code: i32) -> Result<Self> {
        if self.status == Status::Code(code) {
            return Ok(self);
        }
        let place = std::panic::Location::caller();
        bail!(
            "expected exit {code} at {}:{}\n{self}",
            place.file(),
            place.line()
        )
    }

    /// Returns standard output as text, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Returns standard error as text, without the newline at its end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr)
            .trim_end_matches('\n')
            .to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} after {:?}",
            self.title, self.status, self.elapsed
        )?;
        writeln!(f, "--- stdout\n{}", self.text())?;
        write!(f, "--- stderr\n{}", self.error_text())
    }
}
