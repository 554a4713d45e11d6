//! What a command tells `spc serve` of what it has done, for the log and for the metrics.
//!
//! Commands live for a moment and leave nothing behind that counts. So each sends one datagram when it is done, to a socket
//! in `/run/spc` on the host, where every container and every client of that host finds it. Whether anybody listens makes no
//! difference to the command.

use std::fs;
use std::io::ErrorKind::{Interrupted, NotFound, WouldBlock};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use crate::error::{Error, Reason, Result, errno_text};
use crate::host::target::show;
use crate::host::{Host, Settings};
use crate::log;

/// Nobody but root gets into the directory.
const DIR: &str = "/run/spc";
const SOCKET: &str = "/run/spc/serve.sock";

/// How long a command waits for a listener that has much to read.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_secs(10);

/// The longest report that is read; its error is cut to fit.
const LIMIT: usize = 16 * 1024;

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

/// Listens to commands, on a thread of its own, so that none waits for what `spc serve` is at. Of two that listen on a host the
/// later one hears.
///
/// # Errors
/// No thread can be started.
pub fn listen(metrics: Arc<Metrics>) -> Result<()> {
    let listen = move || {
        let mut buffer = vec![0; LIMIT];
        let mut make = true;
        loop {
            let (host, socket) = persist("commands will not be logged", || bind(make));
            // What `spc uninstall` took away comes back with the next mount, not before.
            make = false;
            while is_there(&host) {
                match socket.recv(&mut buffer) {
                    Ok(length) => match serde_json::from_slice(&buffer[..length]) {
                        Ok(report) => heed(&report, &metrics),
                        Err(error) => {
                            tracing::warn!(%error, "a command reports what is no report");
                        }
                    },
                    // Nobody said anything for a while.
                    Err(error) if [WouldBlock, Interrupted].contains(&error.kind()) => {}
                    Err(error) => {
                        tracing::warn!(error = %errno_text(error), "commands cannot be heard");
                        std::thread::sleep(RETRY);
                        break;
                    }
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("reports".into());
    thread
        .spawn(listen)
        .map(drop)
        .map_err(|e| Error::system("cannot start a thread").because(errno_text(e)))
}

/// Tries until it succeeds; says once why it does not, and what that means.
pub(super) fn persist<T>(means: &str, attempt: impl Fn() -> Result<T>) -> T {
    let mut told = false;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) if !told => {
                told = true;
                tracing::warn!("{means}, until this is better: {error}");
            }
            Err(_) => {}
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether a socket is there, ours or a later one.
fn is_there(host: &Host) -> bool {
    let look = || !matches!(fs::symlink_metadata(SOCKET), Err(e) if e.kind() == NotFound);
    // A host that does not answer has not lost it for that.
    host.run("looking for the socket", look).unwrap_or(true)
}

/// Binds the socket, in place of one that is left of an earlier start; in a new directory, if one may be made.
fn bind(make: bool) -> Result<(Host, UnixDatagram)> {
    let host = Host::open(&Settings::read()?)?;
    let bind = move || {
        if make {
            let mut directory = fs::DirBuilder::new();
            directory.recursive(true).mode(0o700).create(DIR)?;
        }
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(SOCKET)?;
        // The directory may have been made by somebody less strict.
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600))?;
        socket.set_read_timeout(Some(RETRY))?;
        Ok(socket)
    };
    let bound = host.run("listening to commands", bind)?;
    let socket = bound.map_err(|e| {
        Error::system(format!("cannot listen on {SOCKET} on the host")).because(errno_text(e))
    })?;
    Ok((host, socket))
}

/// Logs and counts.
fn heed(report: &Report, metrics: &Metrics) {
    let Report {
        request,
        operation,
        target,
        fs_type,
        ..
    } = report;
    let (operation, seconds) = (operation.word(), format!("{:.3}", report.seconds));
    match &report.failure {
        None => {
            tracing::info!(target = %target, r#type = %fs_type, %seconds, %request, "{operation} done");
        }
        Some(Failure { reason, error }) => {
            let reason = reason.word();
            tracing::warn!(target = %target, r#type = %fs_type, %reason, %seconds, %request, "{operation} failed: {error}");
        }
    }
    metrics.count(report);
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
