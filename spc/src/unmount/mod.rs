//! Takes a mount away, waits for its processes, and forgets it.

pub mod escalate;
pub mod foreign;
pub mod holders;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::root;
use crate::error::{Error, Reason, Result, show};
use crate::host::caller;
use crate::host::target::{self, Rules, on_host};
use crate::liveness::path;
use crate::recovery::records::{COPIES, PATIENCE, forget, known, part, settle};
use crate::recovery::{repairs, services};
use crate::state::Session;
use crate::state::events::{Asked, Operation};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};
use crate::unmount::escalate::{How, Off, climb, take_at_once};

/// How long to wait for another command at work on the same target.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// A target that is mounted is looked for where it was allowed to be.
const RULES: Rules = Rules {
    mkdir: None,
    system: true,
    plain_tail: 0,
};

/// The canonical path of a target that may be mounted, as the user wrote it.
///
/// # Errors
/// It does not exist, or the walk to it is refused, or does not come to its end.
pub fn resolve(session: &Session, written: &Path) -> Result<PathBuf> {
    let cwd = caller::cwd()?;
    let path = on_host(written, &cwd, &session.settings.hosts());
    // What is known needs no walk, which may lead through a file system that does not answer.
    let plain: PathBuf = path.components().collect();
    if session
        .ledger
        .get(&plain)
        .is_ok_and(|known| known.is_some())
    {
        return Ok(plain);
    }
    path::clear(&session.host, &path, path::LIMIT)?;
    let (pinned, _) = session
        .host
        .run("looking at the target", move || target::pin(&path, RULES))??;
    Ok(pinned.path)
}

/// Unmounts a recorded mount.
///
/// # Errors
/// It is not ours, is busy, or its processes do not end.
pub fn umount(session: &Session, target: &Path, how: How) -> Result<()> {
    let asked = Asked::now(Operation::Umount);
    // Afterwards nobody knows it any more.
    let mut record = None;
    let done = take_off(session, target, how, &mut record);
    let shares = record.as_ref().is_none_or(services::may_need);
    let fs_type = record.map(|record| record.fs_type).unwrap_or_default();
    asked.tell(&session.host, target, &fs_type, &done);
    done?;
    if shares {
        services::release(session);
    }
    root::release(session);
    Ok(())
}

/// Whether a mount that could not be unmounted has gone with another that it was on; then it is forgotten.
///
/// # Errors
/// As [`umount`].
pub fn went_along(session: &Session, target: &Path) -> Result<bool> {
    // `spc serve` may have seen it before.
    if let Some(record) = session.ledger.get(target)? {
        if entry_of(session, &record)?.is_some() {
            return Ok(false);
        }
        umount(session, target, How::default())?;
    }
    Ok(true)
}

fn take_off(session: &Session, target: &Path, how: How, seen: &mut Option<Record>) -> Result<()> {
    let _lock = session
        .ledger
        .lock(target, Instant::now() + LOCK_LIMIT, || {
            repairs::call_off(session, target)
        })?;
    let Some(mut record) = known(session, target)? else {
        return Err(not_ours(session, target));
    };
    *seen = Some(record.clone());
    let claim = session.claim(&record);
    if record.state == State::Mounting || !record.is_of_this_boot() {
        // Its maker died, or the machine did; what there is of it goes.
        return settle(session, &record).map(drop);
    }
    let mut off = Off::Free;
    if let Some(entry) = entry_of(session, &record)? {
        // One step needs no note of what is to be finished.
        if !take_at_once(session, &record, &entry)? {
            // After a lazy one there is nothing to finish: the daemon stays until the last user is gone.
            if !how.lazy {
                record.state = State::Unmounting;
                note(session, &record);
            }
            off = climb(session, &record, how).inspect_err(|_| {
                record.state = State::Mounted;
                note(session, &record);
            })?;
        }
    } else {
        tracing::info!(target = %record.target, "it was unmounted on the host already");
    }
    let left = match off {
        Off::Free => part(&record, PATIENCE, COPIES)?,
        // It lives until its last user is gone, and its daemon with it.
        Off::Detached => part(&record, PATIENCE, Duration::ZERO)?,
        Off::AtWork => Vec::new(),
    };
    forget(session, &record, &claim, left)?;
    match off {
        Off::AtWork => Err(Error::system(format!(
            "{} is unmounted, but the kernel has not finished",
            record.target
        ))
        .because("its server does not answer")
        .reason_is(Reason::NoAnswer)
        .hint("what was written last may be lost unless the server comes back")),
        Off::Free | Off::Detached => Ok(()),
    }
}

/// A full disk keeps nobody from unmounting. Only if we are killed meanwhile as well does the daemon
/// stay.
fn note(session: &Session, record: &Record) {
    if let Err(error) = session.ledger.put(record) {
        tracing::warn!("{}", error.summary());
    }
}

fn not_ours(session: &Session, target: &Path) -> Error {
    let path = target.to_owned();
    let there = session.host.run("looking at the target", move || {
        let (pinned, _) = target::pin(&path, RULES)?;
        if pinned.mount.is_root {
            pinned.entry()
        } else {
            Ok(None)
        }
    });
    match there {
        Ok(Ok(Some(entry))) => Error::mount(format!(
            "{} was not mounted by spc: {} ({})",
            show(target),
            entry.source,
            entry.fs_type
        ))
        .hint("to unmount it all the same, run umount on the host"),
        Ok(Ok(None)) => {
            Error::mount(format!("{}: not mounted", show(target))).hint("`spc ls` shows what is")
        }
        Ok(Err(error)) | Err(error) => error,
    }
}
