//! Termination of the processes of a mount in bounded time.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use crate::process::marks::{all_exited, marked, open_all, serves_fuse};

/// Waits for the processes of a mount to exit, then kills them: TERM, and KILL after 2 s.
///
/// `patience` limits the wait before the first signal. Returns the ids of processes that survived.
///
/// # Errors
/// No file descriptor or no memory is left, so processes may have been missed.
pub fn terminate(id: &str, patience: Duration) -> io::Result<Vec<i32>> {
    for (signal, wait) in [
        (None, patience),
        (Some(Signal::TERM), Duration::from_secs(2)),
        (Some(Signal::KILL), Duration::from_secs(2)),
    ] {
        // A process may fork before it exits, so search until none is left.
        let until = Instant::now() + wait;
        loop {
            let mut held = open_all(id)?;
            if held.is_empty() {
                // A process in the middle of execve(2) has no environment, so search twice.
                std::thread::sleep(Duration::from_millis(1));
                held = open_all(id)?;
            }
            if held.is_empty() {
                return Ok(Vec::new());
            }
            if let Some(signal) = signal {
                for pidfd in &held {
                    // The process may have exited. A stopped process handles TERM once it
                    // continues.
                    let _ = pidfd_send_signal(pidfd, signal);
                    let _ = pidfd_send_signal(pidfd, Signal::CONT);
                }
            }
            if !all_exited(&held, until) {
                break;
            }
        }
    }
    marked(id)
}

/// Terminates the processes of a mount that is gone from the host, unless the file system is still
/// mounted elsewhere, for example in a container that bind-mounted it.
///
/// `patience` is the time for the processes to exit without a signal; `copies_limit` is the time
/// for other mounts of the file system to go away. Returns the ids of processes that survived.
///
/// # Errors
/// No file descriptor or no memory is left, so processes may have been missed.
pub fn stop_unused_daemon(
    id: &str,
    patience: Duration,
    copies_limit: Duration,
) -> io::Result<Vec<i32>> {
    let start = Instant::now();
    loop {
        let held = open_all(id)?;
        let serves = !held.is_empty() && serves_fuse(id)?;
        if held.is_empty() || (!serves && start.elapsed() >= patience) {
            return terminate(id, Duration::ZERO);
        }
        if serves && start.elapsed() >= copies_limit {
            tracing::info!(
                "the file system is still mounted elsewhere; its daemon keeps running until then"
            );
            return Ok(Vec::new());
        }
        all_exited(&held, Instant::now() + Duration::from_millis(50));
    }
}
