//! Takes a mount away, waits for its processes, and forgets it.

pub mod escalate;
pub mod foreign;
pub mod holders;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::root;
use crate::error::{Error, Reason, Result, show};
use crate::host::caller;
use crate::host::target::{self, Rules, host_path};
use crate::liveness::path;
use crate::process::cancel::CancelToken;
use crate::recovery::records::{
    COPIES, PATIENCE, known, reconcile_record, remove_record, stop_unused_daemon,
};
use crate::recovery::{repairs, services};
use crate::state::Session;
use crate::state::events::{Operation, OperationTimer};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};
use crate::unmount::escalate::{UnmountMode, UnmountOutcome, escalate, unmount_if_idle};

/// How long to wait for another command at work on the same target.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// A target that is mounted is looked for where it was allowed to be.
const RULES: Rules = Rules {
    mkdir: None,
    system: true,
    no_symlink_tail: 0,
};

/// The canonical path of a target that may be mounted, as the user wrote it.
///
/// # Errors
/// It does not exist, or the walk to it is refused, or does not come to its end.
pub fn resolve(session: &Session, written: &Path) -> Result<PathBuf> {
    let cwd = caller::cwd()?;
    let path = host_path(written, &cwd, &session.host.settings().hosts());
    // What is known needs no walk, which may lead through a file system that does not answer.
    let plain: PathBuf = path.components().collect();
    if session
        .ledger
        .get(&plain)
        .is_ok_and(|known| known.is_some())
    {
        return Ok(plain);
    }
    path::ensure_reachable(&session.host, &path, path::LIMIT)?;
    let (pinned, _) = session
        .host
        .run("looking at the target", move || target::pin(&path, RULES))??;
    Ok(pinned.path)
}

/// Unmounts a recorded mount.
///
/// # Errors
/// It is not ours, is busy, or its processes do not end.
pub fn umount(session: &Session, target: &Path, how: UnmountMode) -> Result<()> {
    let asked = OperationTimer::start(Operation::Umount);
    // Afterwards nobody knows it any more.
    let mut record = None;
    let done = unmount_locked(session, target, how, &mut record);
    let shares = record.as_ref().is_none_or(services::may_need);
    let fs_type = record.map(|record| record.fs_type).unwrap_or_default();
    asked.report(&session.host, target, &fs_type, &done);
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
        umount(session, target, UnmountMode::default())?;
    }
    Ok(true)
}

fn unmount_locked(
    session: &Session,
    target: &Path,
    how: UnmountMode,
    seen: &mut Option<Record>,
) -> Result<()> {
    let call_off = || repairs::call_off(session, target);
    let cancel = CancelToken::new(Instant::now() + LOCK_LIMIT, &call_off);
    let _lock = session.ledger.lock(target, cancel)?;
    let Some(mut record) = known(session, target)? else {
        return Err(not_ours(session, target));
    };
    *seen = Some(record.clone());
    let redirect = session.redirect(&record);
    if record.state == State::Mounting || !record.is_of_this_boot() {
        // Its maker died, or the machine did; what there is of it goes.
        return reconcile_record(session, &record).map(drop);
    }
    let mut off = UnmountOutcome::Free;
    if let Some(entry) = entry_of(session, &record)? {
        // One step needs no note of what is to be finished.
        if !unmount_if_idle(session, &record, &entry)? {
            // After a lazy one there is nothing to finish: the daemon stays until the last user is gone.
            if !how.lazy {
                record.state = State::Unmounting;
                note(session, &record);
            }
            off = escalate(session, &record, how).inspect_err(|_| {
                record.state = State::Mounted;
                note(session, &record);
            })?;
        }
    } else {
        tracing::info!(target = %record.target, "it was unmounted on the host already");
    }
    let left = match off {
        UnmountOutcome::Free => stop_unused_daemon(&record, PATIENCE, COPIES)?,
        // It lives until its last user is gone, and its daemon with it.
        UnmountOutcome::Detached => stop_unused_daemon(&record, PATIENCE, Duration::ZERO)?,
        UnmountOutcome::AtWork => Vec::new(),
    };
    remove_record(session, &record, &redirect, left)?;
    match off {
        UnmountOutcome::AtWork => Err(Error::system(format!(
            "{} is unmounted, but the kernel has not finished",
            record.target
        ))
        .because("its server does not answer")
        .reason_is(Reason::NoAnswer)
        .hint("what was written last may be lost unless the server comes back")),
        UnmountOutcome::Free | UnmountOutcome::Detached => Ok(()),
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
