//! What a command did, said in full when it was not what was expected.

use anyhow::{Result, bail};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It did not, and was killed with all it had started.
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

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output until it ended.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error until it ended.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub elapsed: Duration,
    pub(crate) title: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// Itself, or an error that shows everything when it did not exit with 0.
    #[track_caller]
    pub fn ok(self) -> Result<Self> {
        self.code(0)
    }

    /// Itself, or an error that shows everything when it did not exit with this code.
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

    /// Standard output as text, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Standard error as text, without the newline at its end.
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
