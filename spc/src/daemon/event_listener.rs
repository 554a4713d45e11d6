//! Hears what commands have done (`events.rs`), for the log and for the metrics.

use std::fs;
use std::io::ErrorKind::{Interrupted, NotFound, WouldBlock};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::metrics::Metrics;
use crate::error::{Error, Result, errno_text};
use crate::host::{Host, Settings};
use crate::state::events::{Failure, LIMIT, Report, SOCKET};

/// Nobody but root gets into the directory.
const DIR: &str = "/run/spc";

/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_secs(10);

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
                        Ok(report) => handle(&report, &metrics),
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
        .map_err(|e| Error::system("cannot start a thread").because(e))
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
    let host = Host::open(Settings::read()?)?;
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
    let socket = bound
        .map_err(|e| Error::system(format!("cannot listen on {SOCKET} on the host")).because(e))?;
    Ok((host, socket))
}

/// Logs and counts.
fn handle(report: &Report, metrics: &Metrics) {
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
