//! Takes a mount away, waits for its processes, and forgets it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::direct;
use super::ledger::{Record, State};
use super::mounter::Session;
use super::recover::{PATIENCE, entry_of, forget, known, undo};
use super::services;
use crate::client::{enter, root};
use crate::error::{Error, Reason, Result, errno_text};
use crate::health::report::{Asked, Operation};
use crate::host::target::{self, Rules, show};
use crate::host::{process, target::on_host};

/// How long to wait for another command at work on the same target.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// How long a mount may be busy before that is taken for its use by somebody.
const GLANCE: Duration = Duration::from_millis(200);

/// umount(8)'s ways.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// `-l`: detach now, clean up when it is no longer busy.
    pub lazy: bool,
    /// `-f`: give up on outstanding requests.
    pub force: bool,
}

/// The canonical path of a target that may be mounted, as the user wrote it.
///
/// # Errors
/// It does not exist, or the walk to it is refused.
pub fn resolve(session: &Session, written: &Path) -> Result<PathBuf> {
    let cwd = enter::cwd()?;
    let path = on_host(written, &cwd, &session.settings.hosts());
    let rules = Rules {
        system: true,
        ..Rules::default()
    };
    let (pinned, _) = session
        .host
        .run("looking at the target", move || target::pin(&path, rules))??;
    Ok(pinned.path)
}

/// Unmounts a recorded mount.
///
/// # Errors
/// It is not ours, is busy, or its processes do not end.
pub fn umount(session: &Session, target: &Path, how: How) -> Result<()> {
    let asked = Asked::now(Operation::Umount);
    // Afterwards nobody knows it any more; a record that cannot be read is an error below.
    let record = session.ledger.get(target).ok().flatten();
    let fs_type = record.map(|record| record.fs_type).unwrap_or_default();
    let done = take_off(session, target, how);
    asked.tell(&session.host, target, &fs_type, &done);
    done?;
    services::release(session);
    root::release(session);
    Ok(())
}

fn take_off(session: &Session, target: &Path, how: How) -> Result<()> {
    let _lock = session
        .ledger
        .lock(target, Instant::now() + LOCK_LIMIT, || Ok(()))?;
    let Some(mut record) = known(session, target)? else {
        return Err(not_ours(session, target));
    };
    let claim = session.claim(&record);
    if record.state == State::Mounting {
        // Its maker died; what there is of it goes.
        return undo(session, &record);
    }
    if entry_of(session, &record)?.is_some() {
        // After a lazy one there is nothing to finish: the daemon stays until the last user is gone.
        if !how.lazy {
            record.state = State::Unmounting;
            note(session, &record);
        }
        if let Err(error) = take_away(session, &record, how) {
            record.state = State::Mounted;
            note(session, &record);
            return Err(error);
        }
    } else {
        tracing::info!(target = %record.target, "it was unmounted on the host already");
    }
    // A detached mount lives until its last user is gone, and its daemon with it.
    let left = if how.lazy {
        Vec::new()
    } else {
        process::end(&record.id, PATIENCE)
    };
    forget(session, &record, &claim, left)
}

/// A full disk keeps nobody from unmounting. Only if we are killed meanwhile as well does the daemon
/// stay.
fn note(session: &Session, record: &Record) {
    if let Err(error) = session.ledger.put(record) {
        tracing::warn!("{}", error.summary());
    }
}

fn take_away(session: &Session, record: &Record, how: How) -> Result<()> {
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, how.lazy);
    flags.set(UnmountFlags::FORCE, how.force);
    let (target, id, unique) = (
        PathBuf::from(&record.target),
        record.mount_id,
        record.unique_id,
    );
    let fail = || Error::mount(format!("cannot unmount {}", record.target));
    // Another command that looks at the target keeps it busy for a moment.
    let until = Instant::now() + GLANCE;
    let detach = move || loop {
        match direct::detach(&target, id, unique, flags) {
            Err(Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    };
    match session.host.run("unmounting", detach)? {
        Ok(true) => Ok(()),
        Ok(false) => Err(fail()
            .because("another mount covers it")
            .hint("on the host, unmount that one first")),
        Err(Errno::BUSY) => Err(fail()
            .because(errno_text(Errno::BUSY))
            .reason_is(Reason::Busy)
            .hint("end what uses it, or detach it with -l")),
        Err(error) => Err(fail().because(errno_text(error))),
    }
}

fn not_ours(session: &Session, target: &Path) -> Error {
    let path = target.to_owned();
    let rules = Rules {
        system: true,
        ..Rules::default()
    };
    let there = session.host.run("looking at the target", move || {
        let (pinned, _) = target::pin(&path, rules)?;
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
