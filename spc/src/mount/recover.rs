//! What became of a recorded mount, and the clearing away of what is left of one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode as Permissions, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::device::release;
use super::direct;
use super::repair;
use crate::error::{Error, Result, errno_text};
use crate::host::claim::Claim;
use crate::host::mountinfo::{self, Entry};
use crate::host::process;
use crate::host::scope;
use crate::host::target::mount_id;
use crate::liveness::way;
use crate::state::Route;
use crate::state::Session;
use crate::state::ledger::{Record, State};
use crate::state::presence::entry_of;

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
        Some(record) => repair::finish(session, record).map(Some),
        None => Ok(None),
    }
}

/// What a record is worth: the entry of its mount if that is there; otherwise what was left of it
/// is cleared away. Needs the target's lock, so nobody is at work on it.
///
/// # Errors
/// The rest cannot be cleared away.
pub fn settle(session: &Session, record: &Record) -> Result<Option<Entry>> {
    tracing::debug!(target = %record.target, state = ?record.state, "a record is there");
    if !record.is_of_this_boot() {
        // Its mount and its processes went with the machine's earlier life.
        forget(session, record, &session.claim(record), Vec::new())?;
        return Ok(None);
    }
    if record.state == State::Mounting {
        undo(session, record)?;
        return Ok(None);
    }
    let entry = entry_of(session, record)?;
    match (&entry, record.state) {
        // After `umount -l`, and where containers have it, somebody may still use it.
        (None, _) => {
            let left = part(record, GRACE, COPIES)?;
            forget(session, record, &session.claim(record), left)?;
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
        session.claim(record).tidy().map_err(cannot_remove)?;
    }
    Ok(entry)
}

/// As [`process::part`], for the processes of a recorded mount: one that the kernel made by itself has none.
///
/// # Errors
/// Its processes cannot be looked for.
pub fn part(record: &Record, patience: Duration, copies: Duration) -> Result<Vec<i32>> {
    match record.route {
        Route::Direct => Ok(Vec::new()),
        Route::Preload | Route::Graft => {
            process::part(&record.id, patience, copies).map_err(|e| unseen(record, e))
        }
    }
}

/// The error for processes that could not be looked for.
pub fn unseen(record: &Record, error: std::io::Error) -> Error {
    Error::system(format!("cannot look for processes of {}", record.target))
        .because(errno_text(error))
}

/// Takes away everything a record stands for: mount, processes, claim, record, in that order.
///
/// # Errors
/// A mount cannot be detached, or a process does not end.
pub fn undo(session: &Session, record: &Record) -> Result<()> {
    let claim = session.claim(record);
    // A helper still at work could mount after we looked.
    let left = process::end(&record.id, Duration::ZERO).map_err(|e| unseen(record, e))?;
    let mut ids = claim
        .mounted()
        .or((record.mount_id != 0).then_some((record.mount_id, record.unique_id)));
    way::clear(&session.host, Path::new(&record.target), way::LIMIT)?;
    if ids.is_none() && record.route == Route::Preload {
        let seen = record.clone();
        ids = session
            .host
            .run("looking at the target", move || unnoted(&seen))?
            .map_err(|e| {
                Error::system(format!("cannot look at {}", record.target)).because(errno_text(e))
            })?;
    }
    if let Some((id, unique)) = ids {
        let target = PathBuf::from(&record.target);
        let detach = move || direct::detach(&target, id, unique, UnmountFlags::DETACH);
        session.host.run("unmounting", detach)?.map_err(|e| {
            Error::mount(format!("cannot unmount {}", record.target)).because(errno_text(e))
        })?;
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
    forget(session, record, &claim, left)
}

/// The mount of a helper that was killed when the shim had carried its call, but had not yet noted the
/// id, or whose claim went with its container. Nothing was on the target before; what is there now,
/// and shows the source that the record expects (its type, where the source cannot be told), is that mount.
///
/// # Errors
/// It cannot be told. A target that is not there, or cannot be walked to, has no such mount.
pub(super) fn unnoted(record: &Record) -> std::io::Result<Option<(u64, u64)>> {
    let target = Path::new(&record.target);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(None);
    };
    let look = || mount_id(&open(parent, flags, Permissions::empty())?, name);
    let top = match look() {
        Ok(top) => top,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(entry) = mountinfo::find(top.id, top.unique)? else {
        return Ok(None);
    };
    // NFS shows a directory without the slash that may have followed it.
    let plain = |source: &str| source.trim_end_matches('/').to_owned();
    let shown = match &record.shows_source {
        Some(source) => plain(&entry.source) == plain(source),
        None => record.shows.contains(&entry.fs_type),
    };
    let ours = entry.parent == record.on && entry.target == target && shown;
    Ok((top.is_root && ours).then_some((top.id, top.unique)))
}

/// The mount is gone: clears away its stand-in, claim and record.
///
/// # Errors
/// A process is left, or the record cannot be removed.
pub fn forget(session: &Session, record: &Record, claim: &Claim, left: Vec<i32>) -> Result<()> {
    if is_mount(claim.stand_in()) {
        leave_stand_in(claim.stand_in())?;
    }
    if !left.is_empty() {
        return Err(Error::system(format!(
            "processes of {} do not end: {left:?}",
            record.target
        ))
        .hint("they wait in the kernel, probably for a dead server; try again when it is back"));
    }
    take_away(claim)?;
    if record.root.is_some() {
        scope::remove(&scope::name_of(Path::new(&record.target)));
    }
    let left = release::release(session, record, || {
        session.ledger.remove(Path::new(&record.target))
    })?;
    if left == release::Left::InUse {
        tracing::debug!(target = %record.target, "its device is still in use; `spc serve` detaches it later");
    }
    Ok(())
}

/// Removes a claim. Nobody would know of what is left of it once no record names it.
///
/// # Errors
/// Something of it cannot be removed.
pub(super) fn take_away(claim: &Claim) -> Result<()> {
    claim.remove().map_err(cannot_remove)
}

fn cannot_remove((path, error): (PathBuf, std::io::Error)) -> Error {
    Error::system(format!("cannot remove {}", path.display()))
        .because(errno_text(error))
        .hint("`spc umount` tries again")
}

/// Whether something is mounted on a stand-in.
pub fn is_mount(stand_in: &Path) -> bool {
    mount_id(CWD, stand_in.as_os_str()).is_ok_and(|mount| mount.is_root)
}

/// Takes the container's mount off a stand-in.
///
/// # Errors
/// The errno of umount2(2).
pub fn leave_stand_in(stand_in: &Path) -> Result<()> {
    unmount(stand_in, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| {
        Error::system(format!(
            "cannot unmount the stand-in {}",
            stand_in.display()
        ))
        .because(errno_text(e))
    })
}
