//! Finishes or rolls back a repair that was interrupted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::error::{Error, Result, errno_text};
use crate::host::mount_id::{MountId, mount_id};
use crate::host::mountinfo::{self, Entry};
use crate::host::propagated::drop_copies;
use crate::host::redirect::Redirect;
use crate::host::unmount as host_unmount;
use crate::process::{marks, terminate};
use crate::recovery::leftovers::{
    cannot_search, find_unrecorded, is_mount, remove_redirect, unmount_placeholder,
};
use crate::state::presence::entry_of;
use crate::state::{Record, Route, Session};

/// Kills the helper of a running repair, so that an unmount does not have to wait for the repair.
/// Returns the record of the mount under repair, if there is one.
///
/// # Errors
/// Fails if the ledger cannot be read or the search for processes fails.
pub fn cancel(session: &Session, target: &Path) -> Result<Option<Record>> {
    let Some(record) = session.ledger.get(target)? else {
        return Ok(None);
    };
    let Some(repair) = &record.repair else {
        return Ok(None);
    };
    let Some(pending_id) = &repair.pending_id else {
        return Ok(None);
    };
    // The repair fails without its helper. Processes that start meanwhile are found by the next
    // call.
    terminate::terminate(pending_id, Duration::ZERO).map_err(|e| cannot_search(&record, e))?;
    Ok(Some(record))
}

/// Returns the redirect with another id, in the directory of the mount's redirects.
fn redirect_of(session: &Session, record: &Record, id: &str) -> Redirect {
    let id = id.to_owned();
    session.redirect(&Record {
        id,
        ..record.clone()
    })
}

/// Makes the new mount the mount of the record, ends the dead mount's processes and removes its
/// redirect.
///
/// # Errors
/// Fails if the search for processes, the mount table or the ledger fails.
pub(crate) fn adopt(session: &Session, mut record: Record, new: MountId) -> Result<Record> {
    let Some(pending_id) = record.repair.as_mut().and_then(|repair| {
        repair.repairs += 1;
        repair.pending_id.take()
    }) else {
        return Ok(record);
    };
    let old = std::mem::replace(&mut record.id, pending_id);
    // A dead mount can have several processes, and some may still be alive.
    let left = terminate::terminate(&old, Duration::ZERO).map_err(|e| cannot_search(&record, e))?;
    if !left.is_empty() {
        tracing::warn!(target = %record.target, ?left, "processes of the dead mount do not end");
    }
    if let Err((path, error)) = redirect_of(session, &record, &old).remove() {
        tracing::warn!(path = %path.display(), %error, "cannot remove a redirect; the next command tries again");
        record.repair.get_or_insert_default().pending_id = Some(old);
    }
    // After a crash, the redirect and the daemon may be gone with their container.
    if let Err(error) = session
        .redirect(&record)
        .redirect_to_host(new.id, new.unique)
    {
        let error = errno_text(error);
        tracing::warn!(target = %record.target, error, "the daemon of the new mount cannot mount on the host");
    }
    let entries = session.host.run("looking at a mount", move || {
        let entry = mountinfo::find(new.id, new.unique).ok()??;
        let on = mountinfo::find(entry.parent, entry.parent_unique).ok()??;
        Some((on, entry))
    })?;
    if let Some((on, entry)) = entries {
        // The new mount may itself be the copy of a mount on a peer, so 0 removes copies of any age.
        drop_copies(&entry, &on, 0)?;
    }
    record.mount_id = new.id;
    record.unique_id = new.unique;
    record.route = Route::Graft;
    record.daemon = marks::daemons(&record.id).map_err(|e| cannot_search(&record, e))?;
    session.ledger.put(&record)?;
    Ok(record)
}

/// Completes an interrupted repair if its new mount is in place, and rolls it back otherwise.
/// Returns the resulting record. The caller holds the lock of the target.
///
/// # Errors
/// Fails if the ledger cannot be written or the host's mounts cannot be read.
pub fn finish(session: &Session, mut record: Record) -> Result<Record> {
    let pending_id = record
        .repair
        .as_mut()
        .and_then(|repair| repair.pending_id.clone());
    let Some(pending_id) = pending_id else {
        return Ok(record);
    };
    let redirect = redirect_of(session, &record, &pending_id);
    leave_peer(&redirect);
    let dead = entry_of(session, &record)?;
    let wanted = record.clone();
    let new = session.host.run("looking at the target", move || {
        if let Some(dead) = dead {
            if beneath(&dead)?.is_none() {
                return Ok(None);
            }
            let (target, flags) = (Path::new(&wanted.target), UnmountFlags::DETACH);
            if host_unmount::detach(target, wanted.mount_id, wanted.unique_id, flags).is_err() {
                return Ok(None);
            }
        }
        find_unrecorded(&wanted)
    })?;
    let new = new.map_err(|e: std::io::Error| {
        Error::system(format!("cannot look at {}", record.target)).because(e)
    })?;
    if let Some((id, unique)) = new {
        let new = MountId {
            id,
            unique,
            is_root: true,
        };
        return adopt(session, record, new);
    }
    let left =
        terminate::terminate(&pending_id, Duration::ZERO).map_err(|e| cannot_search(&record, e))?;
    if !left.is_empty() {
        tracing::warn!(target = %record.target, ?left, "processes of a repair do not end");
    }
    if is_mount(redirect.placeholder()) {
        unmount_placeholder(redirect.placeholder())?;
    }
    remove_redirect(&redirect)?;
    if let Some(repair) = &mut record.repair {
        repair.pending_id = None;
    }
    session.ledger.put(&record)?;
    Ok(record)
}

/// Removes a peer mount from the container's mount table. The peer leaves its peer group first, so
/// that the mounts on the other peers stay.
pub fn leave_peer(redirect: &Redirect) {
    let peer = redirect.peer();
    let is_mount = |path: &Path| mount_id(CWD, path.as_os_str()).is_ok_and(|mount| mount.is_root);
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if is_mount(&peer)
        && let Err(error) =
            mount_change(&peer, MountPropagationFlags::PRIVATE).and_then(|()| unmount(&peer, flags))
    {
        tracing::warn!(path = %peer.display(), error = %errno_text(error), "cannot detach a peer mount");
    }
    // The directory exists only if a peer was needed.
    let _ = fs::remove_dir(&peer);
}

/// Returns the mount beneath a dead mount if it has the same target: the new mount of a repair.
///
/// # Errors
/// Fails if the mount table cannot be read.
pub fn beneath(dead: &Entry) -> std::io::Result<Option<Entry>> {
    let below = mountinfo::find(dead.parent, dead.parent_unique)?;
    Ok(below.filter(|below| below.target == dead.target))
}
