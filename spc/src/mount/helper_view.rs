//! Copy of a new mount on the placeholder, for a helper that waits until it sees its own mount.
//!
//! By the route preload the mount is on the host, where the helper cannot see it. Some helpers, such
//! as rclone's, exit only when they have found it in their mount table.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::Host;
use crate::host::redirect::Redirect;
use crate::mount::detached::Detached;
use crate::recovery::leftovers::unmount_placeholder;

/// Time for a helper to exit after its mount.
const PATIENCE: Duration = Duration::from_secs(2);

/// Interval at which the mount is looked for.
const INTERVAL: Duration = Duration::from_millis(100);

/// Calls `run`, which runs a helper to its end. If the helper still runs 2 s after its mount was
/// made, it gets a copy on the placeholder, which is removed at the end.
///
/// # Errors
/// Errors of `run`, or the copy cannot be removed.
pub(super) fn with_own_mount<T>(
    host: &Host,
    redirect: &Redirect,
    target: &Path,
    run: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (ended, end) = channel::<()>();
    let (output, copied) = std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut mounted: Option<Instant> = None;
            while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if mounted.is_none() && redirect.mount_ids().is_some() {
                    mounted = Some(Instant::now());
                }
                if mounted.is_some_and(|since| since.elapsed() >= PATIENCE) {
                    let copied = copy(host, target.to_owned(), redirect.placeholder());
                    // Without a copy the helper runs into its time limit.
                    return copied
                        .inspect_err(|error| tracing::warn!("{error}"))
                        .is_ok();
                }
            }
            false
        });
        let output = run();
        drop(ended);
        (output, watch.join().unwrap_or(false))
    });
    if copied {
        unmount_placeholder(redirect.placeholder())?;
    }
    output
}

/// Attaches a copy of the mount on the host to the placeholder.
fn copy(host: &Host, target: PathBuf, placeholder: &Path) -> Result<()> {
    tracing::debug!("the helper waits, perhaps for its own mount; it gets a copy");
    let clone = host.run("cloning the new mount", move || Detached::clone_of(&target))??;
    clone.attach_at(placeholder)
}
