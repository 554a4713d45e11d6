//! Receives the reports of commands (`state/events.rs`), logs them and counts them in the metrics.

use std::fs;
use std::io::ErrorKind::{ConnectionRefused, Interrupted, NotFound, WouldBlock};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::metrics::Metrics;
use crate::error::{Error, Result, errno_text};
use crate::host::{Host, Settings};
use crate::state::events::{Failure, LIMIT, Report, SOCKET};

/// Directory of the socket, mode 0700.
pub(super) const DIR: &str = "/run/spc";

/// Delay before a failed operation is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Interval at which the socket is checked: another process may have taken it, and ended.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Starts a thread that receives reports for as long as the process runs.
///
/// If two processes listen on one host, the later one receives the reports. When it ends, the
/// earlier one receives them again.
///
/// # Errors
/// The thread cannot be started.
pub fn listen(metrics: Arc<Metrics>) -> Result<()> {
    let listen = move || {
        let mut buffer = vec![0; LIMIT];
        let mut create_dir = true;
        loop {
            let (host, socket) =
                retry_forever("reports of commands are not logged", || bind(create_dir));
            // The directory is missing after `spc uninstall`. The next mount creates it again.
            create_dir = false;
            while is_served(&host) {
                match socket.recv(&mut buffer) {
                    Ok(length) => match serde_json::from_slice(&buffer[..length]) {
                        Ok(report) => handle(&report, &metrics),
                        Err(error) => {
                            tracing::warn!(%error, "cannot parse a report of a command");
                        }
                    },
                    // The receive timeout passed, or a signal arrived.
                    Err(error) if [WouldBlock, Interrupted].contains(&error.kind()) => {}
                    Err(error) => {
                        tracing::warn!(error = %errno_text(error), "cannot receive reports of commands");
                        std::thread::sleep(RETRY_INTERVAL);
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

/// Repeats an attempt every 10 s until it succeeds. Logs the first error, with its consequence.
pub fn retry_forever<T>(consequence: &str, attempt: impl Fn() -> Result<T>) -> T {
    let mut logged = false;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) if !logged => {
                logged = true;
                let seconds = RETRY_INTERVAL.as_secs();
                tracing::warn!("{consequence}, trying again every {seconds} s: {error}");
            }
            Err(_) => {}
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// Returns whether a process listens on the socket, be it this one or a later one.
fn is_served(host: &Host) -> bool {
    let connect = || {
        let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(SOCKET));
        !matches!(connected, Err(e) if [ConnectionRefused, NotFound].contains(&e.kind()))
    };
    // The socket counts as served while the host does not respond.
    host.run("looking for the socket", connect).unwrap_or(true)
}

/// Binds the socket, in place of that of any other `spc serve`, running or not. Creates its directory
/// if `create_dir`.
fn bind(create_dir: bool) -> Result<(Host, UnixDatagram)> {
    let host = Host::open(Settings::read()?)?;
    let bind = move || {
        if create_dir {
            create_directory()?;
        }
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(SOCKET)?;
        // Another program may have created the directory with a wider mode.
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600))?;
        socket.set_read_timeout(Some(CHECK_INTERVAL))?;
        Ok(socket)
    };
    let bound = host.run("binding the socket", bind)?;
    let socket = bound
        .map_err(|e| Error::system(format!("cannot listen on {SOCKET} on the host")).because(e))?;
    Ok((host, socket))
}

/// Creates the directory of sockets, if it is missing.
pub(super) fn create_directory() -> std::io::Result<()> {
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o700).create(DIR)
}

/// Logs a report and counts it in the metrics.
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
