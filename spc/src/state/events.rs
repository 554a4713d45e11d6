//! What a command tells `spc serve` of what it has done, for the log and for the metrics.
//!
//! Commands live for a moment and leave nothing behind that counts. So each sends one datagram when it is done, to a socket
//! in `/run/spc` on the host, where every container and every client of that host finds it. Whether anybody listens makes no
//! difference to the command.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Reason, Result, errno_text, show};
use crate::host::Host;
use crate::log;

/// Where `spc serve` listens, on the host.
pub const SOCKET: &str = "/run/spc/serve.sock";

/// How long a command waits for a listener that has much to read.
const PATIENCE: Duration = Duration::from_millis(200);

/// The longest report that is read; its error is cut to fit.
pub const LIMIT: usize = 16 * 1024;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A mount was made.
    Mount,
    /// A mount was taken away.
    Umount,
    /// A dead mount was replaced.
    Repair,
}

impl Operation {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Umount => "umount",
            Self::Repair => "repair",
        }
    }
}

/// How an operation went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The id of its request.
    pub request: String,
    /// What was done.
    pub operation: Operation,
    /// On which target.
    pub target: String,
    /// The file system's type; empty if nobody knows.
    pub fs_type: String,
    /// How long it took.
    pub seconds: f64,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// In a word.
    pub reason: Reason,
    /// In a line.
    pub error: String,
}

/// An operation that has begun.
pub struct Asked {
    operation: Operation,
    at: Instant,
}

impl Asked {
    /// It begins now.
    pub fn now(operation: Operation) -> Self {
        let at = Instant::now();
        Self { operation, at }
    }

    /// It is done: tells how it went to whoever listens.
    pub fn tell<T>(&self, host: &Host, target: &Path, fs_type: &str, done: &Result<T>) {
        let failure = done.as_ref().err().map(|error| Failure {
            reason: error.reason(),
            error: error.summary().chars().take(LIMIT / 8).collect(),
        });
        let report = Report {
            request: log::request().unwrap_or_default().to_owned(),
            operation: self.operation,
            target: show(target),
            fs_type: fs_type.to_owned(),
            seconds: self.at.elapsed().as_secs_f64(),
            failure,
        };
        let sent = serde_json::to_vec(&report)
            .map_err(std::io::Error::other)
            .and_then(|bytes| {
                let send = move || {
                    let socket = UnixDatagram::unbound()?;
                    socket.set_write_timeout(Some(PATIENCE))?;
                    socket.send_to(&bytes, SOCKET).map(drop)
                };
                host.run_within("reporting", PATIENCE * 2, send)
                    .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            });
        if let Err(error) = sent {
            tracing::debug!(error = %errno_text(error), "nobody listens to what was done");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
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
