//! Finishes or rolls back a repair that was interrupted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::error::{Error, Result, errno_text};
use crate::host::mountinfo::{self, Entry};
use crate::host::propagated::drop_copies;
use crate::host::redirect::Redirect;
use crate::host::target::{MountId, mount_id};
use crate::host::unmount as host_unmount;
use crate::process::marks;
use crate::recovery::leftovers::{is_mount, remove_redirect, unmount_placeholder, unnoted, unseen};
use crate::state::presence::entry_of;
use crate::state::{Record, Route, Session};

/// Ends a repair that is at work on a target: whoever waits for its lock to unmount does not want it.
///
/// # Errors
/// The ledger cannot be read.
pub fn call_off(session: &Session, target: &Path) -> Result<()> {
    if let Some(record) = session.ledger.get(target)?
        && let Some(making) = record
            .repair
            .as_ref()
            .and_then(|again| again.pending_id.as_ref())
    {
        // Without its helper it fails. What was not marked yet is found the next time.
        marks::end(making, Duration::ZERO).map_err(|e| unseen(&record, e))?;
    }
    Ok(())
}

/// The claim of this id where those of a mount are.
fn redirect_of(session: &Session, record: &Record, id: &str) -> Redirect {
    let id = id.to_owned();
    session.redirect(&Record {
        id,
        ..record.clone()
    })
}

/// The new mount is in place: it is what the record is about from now on.
pub(crate) fn adopt(session: &Session, mut record: Record, made: MountId) -> Result<Record> {
    let Some(making) = record.repair.as_mut().and_then(|again| {
        again.repairs += 1;
        again.pending_id.take()
    }) else {
        return Ok(record);
    };
    let old = std::mem::replace(&mut record.id, making);
    // Of several processes not all may have died.
    let left = marks::end(&old, Duration::ZERO).map_err(|e| unseen(&record, e))?;
    if !left.is_empty() {
        tracing::warn!(target = %record.target, ?left, "processes of the dead mount do not end");
    }
    if let Err((path, error)) = redirect_of(session, &record, &old).remove() {
        tracing::warn!(path = %path.display(), %error, "a claim could not be removed; the next command tries again");
        record.repair.get_or_insert_default().pending_id = Some(old);
    }
    // After a crash the claim may have gone with its container, and the daemon with it.
    if let Err(error) = session.redirect(&record).carry(made.id, made.unique) {
        let error = errno_text(error);
        tracing::warn!(target = %record.target, error, "its daemon will not reach the host");
    }
    let entries = session.host.run("looking at a mount", move || {
        let entry = mountinfo::find(made.id, made.unique).ok()??;
        let on = mountinfo::find(entry.parent, entry.parent_unique).ok()??;
        Some((on, entry))
    })?;
    if let Some((on, entry)) = entries {
        // It may be a copy itself, of a mount on a peer, and others older.
        drop_copies(&entry, &on, 0)?;
    }
    record.mount_id = made.id;
    record.unique_id = made.unique;
    record.route = Route::Graft;
    record.daemon = marks::daemons(&record.id).map_err(|e| unseen(&record, e))?;
    session.ledger.put(&record)?;
    Ok(record)
}

/// What a record is worth in which a repair was noted, of which nobody is at work any more: either the new mount is in
/// place, then the rest is done, or what there is of it goes.
///
/// # Errors
/// The ledger cannot be written, or the host not be looked at.
pub fn finish(session: &Session, mut record: Record) -> Result<Record> {
    let pending_id = record
        .repair
        .as_mut()
        .and_then(|again| again.pending_id.clone());
    let Some(pending_id) = pending_id else {
        return Ok(record);
    };
    let redirect = redirect_of(session, &record, &pending_id);
    leave_peer(&redirect);
    let dead = entry_of(session, &record)?;
    let seen = record.clone();
    let made = session.host.run("looking at the target", move || {
        if let Some(dead) = dead {
            if beneath(&dead)?.is_none() {
                return Ok(None);
            }
            let (target, flags) = (Path::new(&seen.target), UnmountFlags::DETACH);
            if host_unmount::detach(target, seen.mount_id, seen.unique_id, flags).is_err() {
                return Ok(None);
            }
        }
        unnoted(&seen)
    })?;
    let made = made.map_err(|e: std::io::Error| {
        Error::system(format!("cannot look at {}", record.target)).because(e)
    })?;
    if let Some((id, unique)) = made {
        let made = MountId {
            id,
            unique,
            is_root: true,
        };
        return adopt(session, record, made);
    }
    let left = marks::end(&pending_id, Duration::ZERO).map_err(|e| unseen(&record, e))?;
    if !left.is_empty() {
        tracing::warn!(target = %record.target, ?left, "processes of a repair do not end");
    }
    if is_mount(redirect.placeholder()) {
        unmount_placeholder(redirect.placeholder())?;
    }
    remove_redirect(&redirect)?;
    if let Some(again) = &mut record.repair {
        again.pending_id = None;
    }
    session.ledger.put(&record)?;
    Ok(record)
}

/// Takes a peer out of the container's table again, and out of the group: what is mounted on it stays at the others.
pub fn leave_peer(redirect: &Redirect) {
    let peer = redirect.peer();
    let is_mount = |path: &Path| mount_id(CWD, path.as_os_str()).is_ok_and(|mount| mount.is_root);
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if is_mount(&peer)
        && let Err(error) =
            mount_change(&peer, MountPropagationFlags::PRIVATE).and_then(|()| unmount(&peer, flags))
    {
        tracing::warn!(path = %peer.display(), error = %errno_text(error), "a copy of a mount could not be taken away");
    }
    // It is there only if it was needed.
    let _ = fs::remove_dir(&peer);
}

/// What a mount that still exists is on: another one of the same target if that was put beneath it.
pub fn beneath(dead: &Entry) -> std::io::Result<Option<Entry>> {
    let below = mountinfo::find(dead.parent, dead.parent_unique)?;
    Ok(below.filter(|below| below.target == dead.target))
}
