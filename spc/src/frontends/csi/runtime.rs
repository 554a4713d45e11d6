//! Threads that serve gRPC.

use std::convert::Infallible;

use rustix::process::{Signal, getpid, kill_process};

use crate::error::{Error, Result};

/// Starts a thread with a server. If the server fails, this process ends, and kubelet or the
/// container engine starts the container again. `what` names the server in the log.
///
/// # Errors
/// The thread cannot be started.
pub fn spawn(
    thread: &str,
    what: &'static str,
    serve: impl FnOnce() -> std::io::Result<Infallible> + Send + 'static,
) -> Result<()> {
    let run = move || {
        let Err(error) = serve();
        tracing::error!("{what} is not served any more, so this process ends: {error}");
        let _ = kill_process(getpid(), Signal::TERM);
    };
    std::thread::Builder::new()
        .name(thread.into())
        .spawn(run)
        .map(drop)
        .map_err(|e| Error::system("cannot start a thread").because(e))
}

/// Runs a server on the calling thread until it fails.
///
/// # Errors
/// The runtime cannot be created, or the server fails.
pub fn block_on(
    server: impl Future<Output = std::io::Result<Infallible>>,
) -> std::io::Result<Infallible> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?
        .block_on(server)
}
