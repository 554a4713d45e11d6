//! Detaches devices that nothing uses any more, then their sessions.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::block::attach::{DISK_CHANGE_LIMIT, STEP_SECONDS};
use crate::block::multipath;
use crate::block::paths::{
    ActivePath, active_paths, find_active, prepare_programs, session_lock_name,
};
use crate::error::{Error, Result};
use crate::helper::tool::Tool;
use crate::host::disk::{self, Disk};
use crate::kinds::block;
use crate::kinds::block::model::{Command, Device, PATH_NUMBER};
use crate::process::cancel::CancelToken;
use crate::state::attachments::Attachment;
use crate::state::{Record, Session};

/// Time limit for the lock of a session. The commands that hold it have limits of their own.
const SESSION_LOCK_LIMIT: Duration = Duration::from_secs(120);

/// Result of detaching a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachOutcome {
    /// The device is gone, or was not attached.
    Gone,
    /// Other mounts use the device.
    Shared,
    /// The kernel still uses the device: for a lazily unmounted mount (`umount -l`), or for a mount
    /// that spc did not make.
    InUse,
}

/// Detaches the device of a record unless it is in use, then its session unless that is in use.
/// Finally calls `remove_record`: until then, the record names the device for the next try.
///
/// # Errors
/// Fails if the device or session cannot be detached. `remove_record` is not called then.
pub fn detach_unused(
    session: &Session,
    record: &Record,
    remove_record: impl FnOnce() -> Result<()>,
) -> Result<DetachOutcome> {
    let Some(device) = &record.device else {
        return remove_record().map(|()| DetachOutcome::Gone);
    };
    let deadline = Instant::now() + SESSION_LOCK_LIMIT;
    let name = session_lock_name(&device.session_key);
    let _lock = session
        .ledger
        .lock_named(&name, CancelToken::at(deadline))?;
    let outcome = detach_locked(session, &device.session_key, Some(&device.name), &record.id)?;
    remove_record()?;
    Ok(outcome)
}

/// Detaches the devices that no record names. Returns false if work is left.
///
/// # Errors
/// Fails if the ledger cannot be read.
pub fn collect_garbage(session: &Session) -> Result<bool> {
    let mut done = true;
    for known in session.ledger.attachments()? {
        // The lock holder, if any, handles the session.
        let lock = session_lock_name(&known.session_key);
        let Ok(_lock) = session
            .ledger
            .lock_named(&lock, CancelToken::at(Instant::now()))
        else {
            done = false;
            continue;
        };
        // Another command may have removed the attachment before the lock was taken.
        let Some(attachment) = session.ledger.attachment(&known.session_key)? else {
            continue;
        };
        restore(session, &attachment).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            done = false;
        });
        let (records, _) = session.ledger.all()?;
        let is_used = |name: &str| {
            let mut devices = records.iter().filter_map(|record| record.device.as_ref());
            devices.any(|device| device.name == name)
        };
        let unused = attachment.devices.keys().filter(|name| !is_used(name));
        let mut names: Vec<Option<&str>> = unused.map(|name| Some(name.as_str())).collect();
        if attachment.devices.is_empty() {
            names.push(None);
        }
        for name in names {
            match detach_locked(session, &attachment.session_key, name, "") {
                Ok(DetachOutcome::Gone) => {
                    tracing::info!(device = name.unwrap_or(&attachment.session_key), "detached");
                }
                Ok(DetachOutcome::Shared) => {}
                Ok(DetachOutcome::InUse) => done = false,
                Err(error) => {
                    tracing::warn!("{error}");
                    done = false;
                }
            }
        }
    }
    Ok(done)
}

/// Starts the service of an attachment, which a new container lacks, and reinstates recovered
/// paths.
fn restore(session: &Session, attachment: &Attachment) -> Result<()> {
    if let Some(source) = attachment.sources.last() {
        prepare_programs(session, &block::device_from_source(source)?, None)?;
    }
    let mut volumes = attachment.devices.values();
    volumes.try_for_each(|volume| multipath::reinstate(&session.host, &volume.disk))
}

/// Detaches a device, or only the session if `name` is none. The caller holds the lock of the
/// session. `leaving` is the id of a record that no longer counts as a user.
fn detach_locked(
    session: &Session,
    session_key: &str,
    name: Option<&str>,
    leaving: &str,
) -> Result<DetachOutcome> {
    let ledger = &session.ledger;
    let Some(mut attachment) = ledger.attachment(session_key)? else {
        return Ok(DetachOutcome::Gone);
    };
    let (records, _) = ledger.all()?;
    let users: Vec<_> = records
        .iter()
        .filter(|record| record.id != leaving)
        .filter_map(|record| record.device.as_ref())
        .filter(|device| device.session_key == session_key)
        .collect();
    let devices: Vec<Device> = attachment
        .sources
        .iter()
        .map(|source| block::device_from_source(source))
        .collect::<Result<_>>()?;
    if let Some(name) = name {
        if users.iter().any(|device| device.name == name) {
            return Ok(DetachOutcome::Shared);
        }
        if let Some(device) = devices.iter().find(|device| device.name == name)
            && !remove_disks(session, device, &attachment.foreign)?
        {
            return Ok(DetachOutcome::InUse);
        }
        attachment.devices.remove(name);
        ledger.put_attachment(&attachment)?;
    }
    if !users.is_empty() || !attachment.devices.is_empty() {
        return Ok(if name.is_some() {
            DetachOutcome::Gone
        } else {
            DetachOutcome::Shared
        });
    }
    let Some(device) = devices.first() else {
        ledger.remove_attachment(session_key)?;
        return Ok(DetachOutcome::Gone);
    };
    let active = find_active(session, &device.sysfs)?;
    let ours: Vec<&ActivePath> = active
        .iter()
        .filter(|path| !attachment.foreign.contains(&path.name))
        .collect();
    let mut cleanups = Vec::new();
    for device in &devices {
        for cleanup in &device.cleanup {
            if !cleanups
                .iter()
                .any(|known: &&Command| known.args == cleanup.args)
            {
                cleanups.push(cleanup);
            }
        }
    }
    if !ours.is_empty() {
        if any_in_use(session, device, &ours)? {
            return Ok(DetachOutcome::InUse);
        }
        prepare_programs(session, device, None)?;
    }
    for path in &ours {
        let mut command = device.detach_path.clone();
        for word in &mut command.args {
            *word = word.replace(PATH_NUMBER, path.number());
        }
        run_command(&command, device, &path.name)?;
    }
    let deadline = Instant::now() + DISK_CHANGE_LIMIT;
    while !ours.is_empty() {
        let left = find_active(session, &device.sysfs)?;
        let left: Vec<&str> = left
            .iter()
            .filter(|path| ours.iter().any(|ours| ours.name == path.name))
            .map(|path| path.name.as_str())
            .collect();
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(
                Error::mount(format!("cannot detach {}", attachment.session_key))
                    .because(format!("still there: {}", left.join(" ")))
                    .hint("see the host's kernel log: dmesg"),
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for cleanup in cleanups {
        run_command(cleanup, device, &attachment.session_key)?;
    }
    ledger.remove_attachment(session_key)?;
    Ok(DetachOutcome::Gone)
}

/// Returns whether anything uses a disk on these paths. The disks include those that spc did not
/// attach.
fn any_in_use(session: &Session, device: &Device, paths: &[&ActivePath]) -> Result<bool> {
    let all = device.sysfs.all_disks;
    let dirs: Vec<_> = paths.iter().map(|path| path.dir.clone()).collect();
    let check = move || -> io::Result<bool> {
        for disk in dirs.iter().flat_map(|dir| disk::glob(dir, all)) {
            let name = disk.file_name().unwrap_or_default().to_string_lossy();
            if Disk::open(&name)?.in_use()? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    session.host.run("looking at disks", check)?.map_err(|e| {
        Error::mount(format!("cannot detach {}", device.session_key))
            .because(e)
            .hint("see the host's kernel log: dmesg")
    })
}

/// Runs a command that detaches a path or cleans up after the session.
fn run_command(command: &Command, device: &Device, what: &str) -> Result<()> {
    let tool = Tool {
        program: command.program,
        args: &command.args,
        stdin: None,
        secret_fds: None,
        id: None,
        deadline: Instant::now() + Duration::from_secs(STEP_SECONDS),
    };
    let done = tool.run(None)?;
    if done.code == 0 || command.accepted_codes.contains(&done.code) {
        return Ok(());
    }
    let hints = device.diagnostics.hints.iter();
    let hint = hints.filter(|(words, _)| done.text.contains(words));
    let hint = hint.map(|(_, hint)| *hint).next();
    Err(Error::mount(format!("cannot detach {what}"))
        .because(format!("{}: exit status {}", command.program, done.code))
        .log(done.lines())
        .hint(hint.unwrap_or("try again with `spc umount`; `spc serve` also tries again")))
}

/// Flushes the disks of a device and removes those on spc's own paths. Returns false if the kernel
/// still uses one.
fn remove_disks(session: &Session, device: &Device, foreign: &[String]) -> Result<bool> {
    let failed = |e: io::Error| {
        Error::mount(format!("cannot detach {}", device.name))
            .because(e)
            .hint("see the host's kernel log: dmesg")
    };
    let limit = Duration::from_secs(60);
    let sysfs = device.sysfs.clone();
    // Dirty pages must reach the server before the disk is removed.
    let flush = move || -> io::Result<Option<Option<String>>> {
        let mut joined = None;
        for path in active_paths(&sysfs) {
            let Some(name) = path.disk(&sysfs) else {
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
                tracing::warn!(disk = %disk.name, %error, "cannot flush the disk; unwritten data may be lost");
            }
        }
        Ok(Some(joined))
    };
    let flushed = session.host.run_within("flushing a disk", limit, flush)?;
    let Some(joined) = flushed.map_err(failed)? else {
        return Ok(false);
    };
    if let Some(joined) = joined {
        multipath::remove(&session.host, &joined)?;
    }
    let (sysfs, foreign) = (device.sysfs.clone(), foreign.to_vec());
    let remove = move || -> io::Result<()> {
        let Some(delete) = sysfs.delete else {
            return Ok(());
        };
        let ours = active_paths(&sysfs).into_iter();
        let ours = ours.filter(|path| !foreign.contains(&path.name));
        for name in ours.filter_map(|path| path.disk(&sysfs)) {
            let dir = Path::new("/sys/class/block").join(&name);
            disk::write_attribute(&dir.join(delete), "1")?;
            let deadline = Instant::now() + DISK_CHANGE_LIMIT;
            while dir.exists() {
                if Instant::now() >= deadline {
                    return Err(io::Error::other(format!(
                        "the kernel did not remove {name}"
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    };
    let removed = session.host.run_within("removing a disk", limit, remove)?;
    removed.map(|()| true).map_err(failed)
}
