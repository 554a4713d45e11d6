//! Detaches devices that nobody uses any more, and what they were reached through.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::block::attach::{APPEAR, STEP};
use crate::block::multipath;
use crate::block::paths::{ActivePath, active_paths, look, ready, session_key};
use crate::error::{Error, Result};
use crate::helper::tool::Tool;
use crate::host::disk::{self, Disk};
use crate::kinds::block;
use crate::kinds::block::model::{Command, Device, PATH_NUMBER};
use crate::process::cancel::CancelToken;
use crate::state::attachments::Attachment;
use crate::state::{Record, Session};

/// How long to wait for somebody who attaches or detaches: they are bounded by limits of their own.
const TURN: Duration = Duration::from_secs(120);

/// What became of a device that a mount has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It is gone, or was not there.
    Gone,
    /// Other mounts use it.
    Shared,
    /// The kernel still uses it: a mount that was detached (`umount -l`), or one that somebody else made.
    InUse,
}

/// Detaches a device unless others use it, and what it is reached through unless others do. `forget` removes the
/// record of the mount that has left; until then that record tells that this is to be done.
///
/// # Errors
/// Something cannot be taken away; then `forget` was not called.
pub fn detach_unused(
    session: &Session,
    record: &Record,
    forget: impl FnOnce() -> Result<()>,
) -> Result<Left> {
    let Some(device) = &record.device else {
        return forget().map(|()| Left::Gone);
    };
    let deadline = Instant::now() + TURN;
    let name = session_key(&device.through);
    let _lock = session
        .ledger
        .lock_named(&name, CancelToken::at(deadline))?;
    let left = release_locked(session, &device.through, Some(&device.name), &record.id)?;
    forget()?;
    Ok(left)
}

/// Detaches what no record knows any more. False if something is left to do.
///
/// # Errors
/// The ledger cannot be read.
pub fn collect_garbage(session: &Session) -> Result<bool> {
    let mut done = true;
    for known in session.ledger.attachments()? {
        // Whoever is at work on it will see to it.
        let lock = session_key(&known.session_key);
        let Ok(_lock) = session
            .ledger
            .lock_named(&lock, CancelToken::at(Instant::now()))
        else {
            done = false;
            continue;
        };
        // It may have gone before we had the lock.
        let Some(attachment) = session.ledger.attachment(&known.session_key)? else {
            continue;
        };
        reconcile(session, &attachment).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            done = false;
        });
        let (records, _) = session.ledger.all()?;
        let used = |name: &str| {
            let mut devices = records.iter().filter_map(|record| record.device.as_ref());
            devices.any(|device| device.name == name)
        };
        let unused = attachment.devices.keys().filter(|name| !used(name));
        let mut names: Vec<Option<&str>> = unused.map(|name| Some(name.as_str())).collect();
        if attachment.devices.is_empty() {
            names.push(None);
        }
        for name in names {
            match release_locked(session, &attachment.session_key, name, "") {
                Ok(Left::Gone) => {
                    tracing::info!(device = name.unwrap_or(&attachment.session_key), "detached");
                }
                Ok(Left::Shared) => {}
                Ok(Left::InUse) => done = false,
                Err(error) => {
                    tracing::warn!("{error}");
                    done = false;
                }
            }
        }
    }
    Ok(done)
}

/// The container may be another one than the one that attached it, and ways may be up again that had failed.
fn reconcile(session: &Session, attachment: &Attachment) -> Result<()> {
    if let Some(source) = attachment.sources.last() {
        ready(session, &block::again(source)?, None)?;
    }
    let mut volumes = attachment.devices.values();
    volumes.try_for_each(|volume| multipath::reinstate(&session.host, &volume.disk))
}

fn release_locked(
    session: &Session,
    through: &str,
    name: Option<&str>,
    leaving: &str,
) -> Result<Left> {
    let ledger = &session.ledger;
    let Some(mut attachment) = ledger.attachment(through)? else {
        return Ok(Left::Gone);
    };
    let (records, _) = ledger.all()?;
    let users: Vec<_> = records
        .iter()
        .filter(|record| record.id != leaving)
        .filter_map(|record| record.device.as_ref())
        .filter(|device| device.through == through)
        .collect();
    let devices: Vec<Device> = attachment
        .sources
        .iter()
        .map(|source| block::again(source))
        .collect::<Result<_>>()?;
    if let Some(name) = name {
        if users.iter().any(|device| device.name == name) {
            return Ok(Left::Shared);
        }
        if let Some(device) = devices.iter().find(|device| device.name == name)
            && !take_disks(session, device, &attachment.foreign)?
        {
            return Ok(Left::InUse);
        }
        attachment.devices.remove(name);
        ledger.put_attachment(&attachment)?;
    }
    if !users.is_empty() || !attachment.devices.is_empty() {
        return Ok(if name.is_some() {
            Left::Gone
        } else {
            Left::Shared
        });
    }
    let Some(device) = devices.first() else {
        ledger.remove_attachment(through)?;
        return Ok(Left::Gone);
    };
    let up = look(session, &device.shows)?;
    let ours: Vec<&ActivePath> = up
        .iter()
        .filter(|way| !attachment.foreign.contains(&way.name))
        .collect();
    let mut ends = Vec::new();
    for device in &devices {
        for end in &device.end {
            if !ends.iter().any(|known: &&Command| known.args == end.args) {
                ends.push(end);
            }
        }
    }
    if !ours.is_empty() {
        if somebody_uses(session, device, &ours)? {
            return Ok(Left::InUse);
        }
        ready(session, device, None)?;
    }
    for way in &ours {
        let mut command = device.detach_path.clone();
        for word in &mut command.args {
            *word = word.replace(PATH_NUMBER, way.number());
        }
        finish(&command, device, &way.name)?;
    }
    let until = Instant::now() + APPEAR;
    while !ours.is_empty() {
        let left = look(session, &device.shows)?;
        let left: Vec<&str> = left
            .iter()
            .filter(|way| ours.iter().any(|ours| ours.name == way.name))
            .map(|way| way.name.as_str())
            .collect();
        if left.is_empty() {
            break;
        }
        if Instant::now() >= until {
            return Err(
                Error::mount(format!("cannot detach {}", attachment.session_key))
                    .because(format!("still there: {}", left.join(" ")))
                    .hint("look at the host's kernel log: dmesg"),
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for end in ends {
        finish(end, device, &attachment.session_key)?;
    }
    ledger.remove_attachment(through)?;
    Ok(Left::Gone)
}

/// Whether anything uses a disk on these ways: perhaps one that somebody else has found there.
fn somebody_uses(session: &Session, device: &Device, ways: &[&ActivePath]) -> Result<bool> {
    let all = device.shows.disks;
    let dirs: Vec<_> = ways.iter().map(|way| way.dir.clone()).collect();
    let look = move || -> io::Result<bool> {
        for disk in dirs.iter().flat_map(|dir| disk::glob(dir, all)) {
            let name = disk.file_name().unwrap_or_default().to_string_lossy();
            if Disk::open(&name)?.in_use()? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    session.host.run("looking at disks", look)?.map_err(|e| {
        Error::mount(format!("cannot detach {}", device.session_key))
            .because(e)
            .hint("look at the host's kernel log: dmesg")
    })
}

fn finish(command: &Command, device: &Device, what: &str) -> Result<()> {
    let tool = Tool {
        program: command.program,
        args: &command.args,
        stdin: None,
        secret_fds: None,
        id: None,
        deadline: Instant::now() + Duration::from_secs(STEP),
    };
    let done = tool.run(None)?;
    if done.code == 0 || command.fine.contains(&done.code) {
        return Ok(());
    }
    let hints = device.diagnostics.hints.iter();
    let known = hints.filter(|(words, _)| done.text.contains(words));
    let known = known.map(|(_, hint)| *hint).next();
    Err(Error::mount(format!("cannot detach {what}"))
        .because(format!("{}: exit status {}", command.program, done.code))
        .log(done.lines())
        .hint(known.unwrap_or("try again with `spc umount`; `spc serve` does so as well")))
}

/// Takes away the disks of a device, on the ways that are ours. False if the kernel still uses one.
fn take_disks(session: &Session, device: &Device, foreign: &[String]) -> Result<bool> {
    let failed = |e: io::Error| {
        Error::mount(format!("cannot detach {}", device.name))
            .because(e)
            .hint("look at the host's kernel log: dmesg")
    };
    let limit = Duration::from_secs(60);
    let shows = device.shows.clone();
    // What the kernel holds back goes out now, and not when the disk is gone.
    let flush = move || -> io::Result<Option<Option<String>>> {
        let mut joined = None;
        for way in active_paths(&shows) {
            let Some(name) = way.disk(&shows) else {
                continue;
            };
            let mut disk = Disk::open(&name)?;
            if let Some(multipath) = disk.multipath() {
                disk = Disk::open(&multipath)?;
                joined = Some(multipath);
            }
            if disk.in_use()? {
                return Ok(None);
            }
            if let Err(error) = rustix::fs::fsync(&disk.fd) {
                tracing::warn!(disk = %disk.name, %error, "what was to be written may be lost");
            }
        }
        Ok(Some(joined))
    };
    let flushed = session.host.run_within("flushing a disk", limit, flush)?;
    let Some(joined) = flushed.map_err(failed)? else {
        return Ok(false);
    };
    if let Some(joined) = joined {
        multipath::part(&session.host, &joined)?;
    }
    let (shows, foreign) = (device.shows.clone(), foreign.to_vec());
    let take = move || -> io::Result<()> {
        let Some(delete) = shows.delete else {
            return Ok(());
        };
        let ours = active_paths(&shows).into_iter();
        let ours = ours.filter(|way| !foreign.contains(&way.name));
        for name in ours.filter_map(|way| way.disk(&shows)) {
            let dir = Path::new("/sys/class/block").join(&name);
            disk::tell(&dir.join(delete), "1")?;
            let until = Instant::now() + APPEAR;
            while dir.exists() {
                if Instant::now() >= until {
                    return Err(io::Error::other(format!("{name} does not go")));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    };
    let taken = session.host.run_within("taking away a disk", limit, take)?;
    taken.map(|()| true).map_err(failed)
}
