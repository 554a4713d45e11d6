//! Reconciles records with the mounts of the host, and removes the leftovers of a mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::block::detach;
use crate::error::{Error, Result};
use crate::host::mountinfo::Entry;
use crate::host::redirect::Redirect;
use crate::host::{cgroup, unmount as host_unmount};
use crate::liveness::path;
use crate::process::terminate;
use crate::recovery::leftovers::{
    cannot_remove, cannot_search, find_unrecorded, is_mount, remove_redirect, unmount_placeholder,
};
use crate::recovery::{ended_pods, repairs};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};
use crate::state::{Route, Session};

/// Time for a daemon to end by itself after its mount is gone.
pub const DAEMON_EXIT_LIMIT: Duration = Duration::from_secs(5);

/// Time to wait until copies of a mount are gone: a starting container has copies of the host's
/// mounts for a moment.
pub const COPY_LIMIT: Duration = Duration::from_secs(1);

/// Time for a daemon to end by itself after another program unmounted its mount.
const ORPHAN_EXIT_LIMIT: Duration = Duration::from_secs(1);

/// Returns the record of a target, after an interrupted repair is finished or rolled back. The
/// caller holds the lock of the target.
///
/// # Errors
/// Fails if the record cannot be read or the repair cannot be finished.
pub fn load_record(session: &Session, target: &Path) -> Result<Option<Record>> {
    match session.ledger.get(target)? {
        Some(record) => repairs::finish(session, record).map(Some),
        None => Ok(None),
    }
}

/// Returns the mountinfo entry of a recorded mount. Without a complete mount, removes its remains
/// and its record and returns none. The caller holds the lock of the target.
///
/// # Errors
/// Fails if the remains cannot be removed.
pub fn reconcile_record(session: &Session, record: &Record) -> Result<Option<Entry>> {
    tracing::debug!(target = %record.target, state = ?record.state, "reconciling a record");
    if !record.is_of_this_boot() {
        // The mount and its processes ended with the earlier boot.
        remove_record(session, record, &session.redirect(record), Vec::new())?;
        return Ok(None);
    }
    if record.state == State::Mounting {
        roll_back(session, record)?;
        return Ok(None);
    }
    let entry = entry_of(session, record)?;
    match (&entry, record.state) {
        // The daemon may still serve processes after `umount -l`, or copies in containers.
        (None, _) => {
            let left = stop_unused_daemon(record, ORPHAN_EXIT_LIMIT, COPY_LIMIT)?;
            remove_record(session, record, &session.redirect(record), left)?;
        }
        // The command that was unmounting died first: the mount is an ordinary one again.
        (Some(_), State::Unmounting) => {
            let mut record = record.clone();
            record.state = State::Mounted;
            session.ledger.put(&record)?;
        }
        (Some(_), _) => {}
    }
    if entry.is_some() {
        session
            .redirect(record)
            .remove_temporary()
            .map_err(cannot_remove)?;
    }
    Ok(entry)
}

/// Stops the daemon of a recorded mount if nothing uses it, like [`terminate::stop_unused_daemon`].
/// Mounts of the kernel have no daemon. Returns the processes that did not end.
///
/// # Errors
/// Fails if the search for processes fails.
pub fn stop_unused_daemon(
    record: &Record,
    exit_limit: Duration,
    copy_limit: Duration,
) -> Result<Vec<i32>> {
    match record.route {
        Route::Direct => Ok(Vec::new()),
        Route::Preload | Route::Graft => {
            terminate::stop_unused_daemon(&record.id, exit_limit, copy_limit)
                .map_err(|e| cannot_search(record, e))
        }
    }
}

/// Removes everything that belongs to a record: processes, mount, redirect, device and the record
/// itself.
///
/// # Errors
/// Fails if the mount cannot be detached or a process does not end.
pub fn roll_back(session: &Session, record: &Record) -> Result<()> {
    let redirect = session.redirect(record);
    // A running helper could mount after the search for the mount.
    let left =
        terminate::terminate(&record.id, Duration::ZERO).map_err(|e| cannot_search(record, e))?;
    let mut ids = redirect
        .mount_ids()
        .or((record.mount_id != 0).then_some((record.mount_id, record.unique_id)));
    path::ensure_reachable(&session.host, Path::new(&record.target), path::LIMIT)?;
    if ids.is_none() && record.route == Route::Preload {
        let wanted = record.clone();
        ids = session
            .host
            .run("looking at the target", move || find_unrecorded(&wanted))?
            .map_err(|e| Error::system(format!("cannot look at {}", record.target)).because(e))?;
    }
    if let Some((id, unique)) = ids {
        let target = PathBuf::from(&record.target);
        let detach = move || host_unmount::detach(&target, id, unique, UnmountFlags::DETACH);
        session
            .host
            .run("unmounting", detach)?
            .map_err(|e| Error::mount(format!("cannot unmount {}", record.target)).because(e))?;
        let mounted = Record {
            mount_id: id,
            unique_id: unique,
            ..record.clone()
        };
        if entry_of(session, &mounted)?.is_some() {
            return Err(Error::mount(format!("cannot unmount {}", record.target))
                .because("another mount covers it, or its path keeps changing"));
        }
    }
    remove_record(session, record, &redirect, left)
}

/// Removes the placeholder, redirect, cgroup, device and record of a mount that is gone. `left` are
/// the processes that did not end.
///
/// # Errors
/// Fails if a process is left or the record cannot be removed.
pub fn remove_record(
    session: &Session,
    record: &Record,
    redirect: &Redirect,
    left: Vec<i32>,
) -> Result<()> {
    if is_mount(redirect.placeholder()) {
        unmount_placeholder(redirect.placeholder())?;
    }
    if !left.is_empty() {
        return Err(Error::system(format!(
            "processes of {} do not end: {left:?}",
            record.target
        ))
        .hint("they wait in the kernel, probably for a dead server; try again when the server is back"));
    }
    remove_redirect(redirect)?;
    if record.root.is_some() {
        cgroup::remove(&cgroup::name_for(Path::new(&record.target)));
    }
    // The log of a failed mount stays, for whoever looks for the reason.
    if record.state != State::Mounting {
        ended_pods::remove_logs(session, record);
    }
    let outcome = detach::detach_unused(session, record, || {
        session.ledger.remove(Path::new(&record.target))
    })?;
    if outcome == detach::DetachOutcome::InUse {
        tracing::debug!(target = %record.target, "its device is still in use; `spc serve` detaches it later");
    }
    Ok(())
}
