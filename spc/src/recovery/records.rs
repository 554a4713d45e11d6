//! What became of a recorded mount, and the clearing away of what is left of one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::block::detach;
use crate::error::{Error, Result};
use crate::host::mountinfo::Entry;
use crate::host::redirect::Redirect;
use crate::host::{cgroup, unmount as host_unmount};
use crate::liveness::path;
use crate::process::marks;
use crate::recovery::leftovers::{
    cannot_remove, is_mount, remove_redirect, unmount_placeholder, unnoted, unseen,
};
use crate::recovery::repairs;
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};
use crate::state::{Route, Session};

/// How long a daemon may take to end by itself once its mount is gone.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A container that is being started has a copy of the host's mounts for a moment. What is in use for longer is so.
pub const COPIES: Duration = Duration::from_secs(1);

/// How long a daemon may take whose mount somebody else has taken away.
const GRACE: Duration = Duration::from_secs(1);

/// The record of a target, whose lock is ours, after what a dead repair left is put right.
///
/// # Errors
/// It cannot be read, or put right.
pub fn known(session: &Session, target: &Path) -> Result<Option<Record>> {
    match session.ledger.get(target)? {
        Some(record) => repairs::finish(session, record).map(Some),
        None => Ok(None),
    }
}

/// What a record is worth: the entry of its mount if that is there; otherwise what was left of it
/// is cleared away. Needs the target's lock, so nobody is at work on it.
///
/// # Errors
/// The rest cannot be cleared away.
pub fn reconcile_record(session: &Session, record: &Record) -> Result<Option<Entry>> {
    tracing::debug!(target = %record.target, state = ?record.state, "a record is there");
    if !record.is_of_this_boot() {
        // Its mount and its processes went with the machine's earlier life.
        remove_record(session, record, &session.redirect(record), Vec::new())?;
        return Ok(None);
    }
    if record.state == State::Mounting {
        roll_back(session, record)?;
        return Ok(None);
    }
    let entry = entry_of(session, record)?;
    match (&entry, record.state) {
        // After `umount -l`, and where containers have it, somebody may still use it.
        (None, _) => {
            let left = stop_unused_daemon(record, GRACE, COPIES)?;
            remove_record(session, record, &session.redirect(record), left)?;
        }
        // Whoever was to take it away died before that: it is a mount like any other.
        (Some(_), State::Unmounting) => {
            let mut record = record.clone();
            record.state = State::Mounted;
            session.ledger.put(&record)?;
        }
        (Some(_), _) => {}
    }
    if entry.is_some() {
        session.redirect(record).tidy().map_err(cannot_remove)?;
    }
    Ok(entry)
}

/// As [`marks::part`], for the processes of a recorded mount: one that the kernel made by itself has none.
///
/// # Errors
/// Its processes cannot be looked for.
pub fn stop_unused_daemon(
    record: &Record,
    patience: Duration,
    copies: Duration,
) -> Result<Vec<i32>> {
    match record.route {
        Route::Direct => Ok(Vec::new()),
        Route::Preload | Route::Graft => {
            marks::part(&record.id, patience, copies).map_err(|e| unseen(record, e))
        }
    }
}

/// Takes away everything a record stands for: mount, processes, claim, record, in that order.
///
/// # Errors
/// A mount cannot be detached, or a process does not end.
pub fn roll_back(session: &Session, record: &Record) -> Result<()> {
    let redirect = session.redirect(record);
    // A helper still at work could mount after we looked.
    let left = marks::end(&record.id, Duration::ZERO).map_err(|e| unseen(record, e))?;
    let mut ids = redirect
        .mounted()
        .or((record.mount_id != 0).then_some((record.mount_id, record.unique_id)));
    path::ensure_reachable(&session.host, Path::new(&record.target), path::LIMIT)?;
    if ids.is_none() && record.route == Route::Preload {
        let seen = record.clone();
        ids = session
            .host
            .run("looking at the target", move || unnoted(&seen))?
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
                .because("another mount covers it, or its path is changed all the time"));
        }
    }
    remove_record(session, record, &redirect, left)
}

/// The mount is gone: clears away its stand-in, claim and record.
///
/// # Errors
/// A process is left, or the record cannot be removed.
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
        .hint("they wait in the kernel, probably for a dead server; try again when it is back"));
    }
    remove_redirect(redirect)?;
    if record.root.is_some() {
        cgroup::remove(&cgroup::name_of(Path::new(&record.target)));
    }
    let left = detach::detach_unused(session, record, || {
        session.ledger.remove(Path::new(&record.target))
    })?;
    if left == detach::Left::InUse {
        tracing::debug!(target = %record.target, "its device is still in use; `spc serve` detaches it later");
    }
    Ok(())
}
