//! Reports finished operations to `spc serve`, for its log and its metrics.
//!
//! Each command sends one datagram when it is done. The socket is in `/run/spc` on the host, where
//! every container and client namespace of the host finds it. The result of the command does not
//! depend on a listener.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Reason, Result, errno_text, show};
use crate::host::Host;
use crate::log;

/// Socket of `spc serve`, on the host.
pub const SOCKET: &str = "/run/spc/serve.sock";

/// Time limit for sending a report, in case the listener is busy.
const SEND_LIMIT: Duration = Duration::from_millis(200);

/// Size limit of a report in bytes. The error text is cut to fit.
pub const LIMIT: usize = 16 * 1024;

/// Kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A mount.
    Mount,
    /// An unmount.
    Umount,
    /// The replacement of a dead mount.
    Repair,
}

impl Operation {
    /// Returns the word used in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Umount => "umount",
            Self::Repair => "repair",
        }
    }
}

/// Result of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Request id, as in the log.
    pub request: String,
    /// Kind of operation.
    pub operation: Operation,
    /// Target on the host.
    pub target: String,
    /// File system type; empty if unknown.
    pub fs_type: String,
    /// Duration in seconds.
    pub seconds: f64,
    /// Failure; none on success.
    pub failure: Option<Failure>,
}

/// Failure of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Reason in one word.
    pub reason: Reason,
    /// Error text in one line.
    pub error: String,
}

/// Running operation, for its duration and its report.
pub struct OperationTimer {
    operation: Operation,
    started: Instant,
}

impl OperationTimer {
    /// Starts the timer.
    pub fn start(operation: Operation) -> Self {
        let started = Instant::now();
        Self { operation, started }
    }

    /// Sends the result to `spc serve`; without a listener, nothing happens.
    pub fn report<T>(&self, host: &Host, target: &Path, fs_type: &str, done: &Result<T>) {
        let failure = done.as_ref().err().map(|error| Failure {
            reason: error.reason(),
            error: error.summary().chars().take(LIMIT / 8).collect(),
        });
        let report = Report {
            request: log::request().unwrap_or_default().to_owned(),
            operation: self.operation,
            target: show(target),
            fs_type: fs_type.to_owned(),
            seconds: self.started.elapsed().as_secs_f64(),
            failure,
        };
        let sent = serde_json::to_vec(&report)
            .map_err(std::io::Error::other)
            .and_then(|bytes| {
                let send = move || {
                    let socket = UnixDatagram::unbound()?;
                    socket.set_write_timeout(Some(SEND_LIMIT))?;
                    socket.send_to(&bytes, SOCKET).map(drop)
                };
                host.run_within("reporting", SEND_LIMIT * 2, send)
                    .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            });
        if let Err(error) = sent {
            tracing::debug!(error = %errno_text(error), "no listener for the report");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_serialisation() {
        let report = Report {
            request: "a1".into(),
            operation: Operation::Umount,
            target: "/mnt".into(),
            fs_type: "nfs".into(),
            seconds: 0.25,
            failure: Some(Failure {
                reason: Reason::NoAnswer,
                error: "no".into(),
            }),
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(
            text.contains("\"umount\"") && text.contains("\"no_answer\""),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
