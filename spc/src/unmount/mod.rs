//! Unmounts a recorded mount, waits for its processes to end, and removes its record.

pub mod escalate;
pub mod foreign;
pub mod holders;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::root;
use crate::error::{Error, Reason, Result, show};
use crate::host::caller;
use crate::host::mountinfo::Entry;
use crate::host::target::{self, Rules, host_path};
use crate::liveness::path;
use crate::process::cancel::CancelToken;
use crate::recovery::records::{
    COPY_LIMIT, DAEMON_EXIT_LIMIT, load_record, reconcile_record, remove_record, stop_unused_daemon,
};
use crate::recovery::{repairs, services};
use crate::state::Session;
use crate::state::events::{Operation, OperationTimer};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};
use crate::unmount::escalate::{UnmountMode, UnmountOutcome, escalate, unmount_if_idle};

/// Time limit for the lock of a target that another command is using.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Rules for the path of a mounted target: its mount was allowed before, so system directories are
/// too.
const RULES: Rules = Rules {
    mkdir: None,
    system: true,
    no_symlink_tail: 0,
};

/// Resolves a target as the user wrote it to the canonical path on the host.
///
/// # Errors
/// Fails if the path does not exist, is refused, or cannot be reached.
pub fn resolve(session: &Session, requested: &Path) -> Result<PathBuf> {
    let cwd = caller::cwd()?;
    let path = host_path(requested, &cwd, &session.host.settings().hosts());
    // A recorded target needs no path lookup, which could block on a dead file system.
    let plain: PathBuf = path.components().collect();
    if session
        .ledger
        .get(&plain)
        .is_ok_and(|record| record.is_some())
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
/// Fails if spc did not make the mount, the mount is busy, or its processes do not end.
pub fn umount(session: &Session, target: &Path, mode: UnmountMode) -> Result<()> {
    let timer = OperationTimer::start(Operation::Umount);
    // The report needs the type of the mount, and the record is gone by then.
    let mut record = None;
    let done = unmount_locked(session, target, mode, &mut record);
    let may_share_service = record.as_ref().is_none_or(services::may_need);
    let fs_type = record.map(|record| record.fs_type).unwrap_or_default();
    timer.report(&session.host, target, &fs_type, &done);
    done?;
    if may_share_service {
        services::stop_unused(session);
    }
    root::remove_unused(session);
    Ok(())
}

/// Returns whether a mount that could not be unmounted is gone together with its parent mount.
/// Removes its record if so.
///
/// # Errors
/// Same as [`umount`].
pub fn is_gone_with_parent(session: &Session, target: &Path) -> Result<bool> {
    // `spc serve` may have removed the record already.
    if let Some(record) = session.ledger.get(target)? {
        if entry_of(session, &record)?.is_some() {
            return Ok(false);
        }
        umount(session, target, UnmountMode::default())?;
    }
    Ok(true)
}

/// Unmounts under the lock of the target. Copies the record to `found` once it is known.
fn unmount_locked(
    session: &Session,
    target: &Path,
    mode: UnmountMode,
    found: &mut Option<Record>,
) -> Result<()> {
    let cancelled = RefCell::new(None);
    let cancel_repair = || {
        if let Some(record) = repairs::cancel(session, target)? {
            cancelled.replace(Some(record));
        }
        Ok(())
    };
    let cancel = CancelToken::new(Instant::now() + LOCK_LIMIT, &cancel_repair);
    let _lock = session.ledger.lock(target, cancel)?;
    let Some(mut record) = load_record(session, target)? else {
        return match (entry_on(session, target)?, cancelled.take()) {
            // `spc serve` has unmounted what the repair left that this command has cancelled.
            (None, Some(record)) => {
                *found = Some(record);
                Ok(())
            }
            (entry, _) => Err(not_ours(target, entry)),
        };
    };
    *found = Some(record.clone());
    let redirect = session.redirect(&record);
    if record.state == State::Mounting || !record.is_of_this_boot() {
        // The command that mounted died, or the machine rebooted: remove the remains.
        return reconcile_record(session, &record).map(drop);
    }
    let mut outcome = UnmountOutcome::Free;
    if let Some(entry) = entry_of(session, &record)? {
        // An unmount in one step leaves nothing to finish, so it needs no state in the record.
        if !unmount_if_idle(session, &record, &entry)? {
            // After a lazy unmount there is nothing to finish: the daemon stays until the last user
            // ends.
            if !mode.lazy {
                record.state = State::Unmounting;
                put_or_warn(session, &record);
            }
            outcome = escalate(session, &record, mode).inspect_err(|_| {
                record.state = State::Mounted;
                put_or_warn(session, &record);
            })?;
        }
    } else {
        tracing::info!(target = %record.target, "already unmounted on the host");
    }
    let left = match outcome {
        UnmountOutcome::Free => stop_unused_daemon(&record, DAEMON_EXIT_LIMIT, COPY_LIMIT)?,
        // The mount and its daemon live until the last user ends.
        UnmountOutcome::Detached => stop_unused_daemon(&record, DAEMON_EXIT_LIMIT, Duration::ZERO)?,
        UnmountOutcome::Unfinished => Vec::new(),
    };
    remove_record(session, &record, &redirect, left)?;
    match outcome {
        UnmountOutcome::Unfinished => Err(Error::system(format!(
            "{} is unmounted, but the kernel has not finished",
            record.target
        ))
        .because("its server does not answer")
        .reason_is(Reason::NoAnswer)
        .hint("what was written last may be lost unless the server comes back")),
        UnmountOutcome::Free | UnmountOutcome::Detached => Ok(()),
    }
}

/// Writes the record, or logs a warning: a full disk must not prevent an unmount. The daemon is
/// left behind only if the command is also killed meanwhile.
fn put_or_warn(session: &Session, record: &Record) {
    if let Err(error) = session.ledger.put(record) {
        tracing::warn!("{}", error.summary());
    }
}

/// Returns the entry of the mount on a target, whoever made it.
///
/// # Errors
/// The target cannot be reached.
fn entry_on(session: &Session, target: &Path) -> Result<Option<Entry>> {
    let path = target.to_owned();
    session.host.run("looking at the target", move || {
        let (pinned, _) = target::pin(&path, RULES)?;
        if pinned.mount.is_root {
            pinned.entry()
        } else {
            Ok(None)
        }
    })?
}

/// Returns the error for a target without a record: not mounted, or mounted by another program.
fn not_ours(target: &Path, entry: Option<Entry>) -> Error {
    match entry {
        Some(entry) => Error::mount(format!(
            "{} was not mounted by spc: {} ({})",
            show(target),
            entry.source,
            entry.fs_type
        ))
        .hint("to unmount it anyway, run umount on the host"),
        None => Error::mount(format!("{}: not mounted", show(target)))
            .hint("`spc ls` shows what is mounted"),
    }
}
