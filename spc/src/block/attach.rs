//! Attaches block devices before their file system is mounted. [`detach`](super::detach) detaches
//! them.
//!
//! The kind describes the steps as data ([`Device`]). Devices that share a session with a target
//! share one [`Attachment`] in the ledger. spc writes the attachment before it attaches anything,
//! and changes it only under its lock. A device is in use as long as a record names it or the
//! kernel holds it.

use std::time::{Duration, Instant};

use crate::block::node_record::set;
use crate::block::paths::{ActivePath, active_paths, find_active, session_lock_name};
use crate::error::{Class, Error, Result, errno_text};
use crate::helper::secret_fds::SecretFds;
use crate::helper::tool::{Tool, earlier_deadline};
use crate::host::disk::{self, Disk};
use crate::kinds::block::model::{Command, Device, DevicePath, Step, Value};
use crate::kinds::model::{SecretDelivery, SecretParam};
use crate::options::Secrets;
use crate::process::interrupts::Interrupts;
use crate::state::attachments::{Attachment, Volume};
use crate::state::lock::Lock;
use crate::state::{Record, Session};

/// Time limit in seconds of one step on a path. The programs time out earlier at a dead portal.
pub(super) const STEP_SECONDS: u64 = 60;

/// Time limit for the kernel to add a disk after a scan, or to remove one.
pub(super) const DISK_CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Request to attach a device.
pub struct AttachRequest<'a> {
    /// Context of the command.
    pub session: &'a Session,
    /// Device to attach.
    pub device: &'a Device,
    /// Record of the mount, already in the ledger.
    pub record: &'a Record,
    /// Requested name of the host towards servers, in place of its own.
    pub host_name: Option<&'a str>,
    /// Secrets of the mount.
    pub secrets: &'a Secrets,
    /// Deadline of the attachment.
    pub deadline: Instant,
    /// Signals that end the wait.
    pub interrupts: &'a Interrupts,
}

/// Attached device, locked against other commands until this is dropped.
pub struct Attached {
    /// Disk in use.
    pub disk: Disk,
    _lock: Lock,
}

impl AttachRequest<'_> {
    /// Attaches the device unless it is attached, and verifies that it is the recorded volume.
    ///
    /// # Errors
    /// Fails if no path came up, no disk appeared, or the volume is another one. The attachment
    /// stays in the ledger, so that detaching undoes the finished steps.
    pub fn run(&self) -> Result<Attached> {
        let ledger = &self.session.ledger;
        let cancel = self.interrupts.until(self.deadline);
        let device_lock = ledger.lock_named(&self.device.name, cancel)?;
        let _session_lock =
            ledger.lock_named(&session_lock_name(&self.device.session_key), cancel)?;
        let active = find_active(self.session, &self.device.sysfs)?;
        let mut attachment = match ledger.attachment(&self.device.session_key)? {
            Some(attachment) => attachment,
            None => Attachment {
                session_key: self.device.session_key.clone(),
                foreign: active.iter().map(|path| path.name.clone()).collect(),
                ..Attachment::default()
            },
        };
        if !attachment.sources.contains(&self.record.source) {
            attachment.sources.push(self.record.source.clone());
        }
        ledger.put_attachment(&attachment)?;
        self.bring_up(&active)?;
        let disks = self.find()?;
        self.set_recovery_timeout(active)?;
        let (volume, disks) = self.identify(&attachment, disks)?;
        let disk = self.choose(&attachment, disks)?;
        attachment.devices.insert(
            self.device.name.clone(),
            Volume {
                disk: disk.name.clone(),
                ids: volume,
            },
        );
        ledger.put_attachment(&attachment)?;
        Ok(Attached {
            disk,
            _lock: device_lock,
        })
    }

    /// Runs the steps that bring up one path.
    pub(super) fn run_steps(&self, path: &DevicePath, host_name: Option<&str>) -> Result<()> {
        let context = || format!("cannot attach {} at {}", self.device.name, path.name);
        for step in &path.steps {
            match step {
                Step::Run(command) => self.run_command(command, &context())?,
                Step::Set { files, settings } => {
                    let mut lines = Vec::new();
                    for (key, value) in settings {
                        let value = match value {
                            Value::Text(text) => text.clone().into_bytes(),
                            Value::HostName => host_name.unwrap_or_default().into(),
                            Value::Secret(key) => self.secret(key)?,
                        };
                        lines.push((*key, value));
                    }
                    set(files, &lines).map_err(|e| {
                        Error::system(context())
                            .because(format!("cannot write its node record: {}", errno_text(e)))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Returns a secret for a setting, without characters that would break its line.
    fn secret(&self, key: &str) -> Result<Vec<u8>> {
        let secret = self.secrets.get(key).ok_or_else(|| {
            Error::usage(format!("secret {key} is missing"))
                .hint(format!("give it by --secret {key}=file:PATH"))
        })?;
        let secret = secret.expose().as_bytes().to_vec();
        let is_invalid = secret.iter().any(u8::is_ascii_control)
            || secret.trim_ascii().len() != secret.len()
            || secret.is_empty();
        if is_invalid {
            return Err(Error::usage(format!("invalid secret {key}")).because(
                "it is empty, or begins or ends with a space, or holds a control character",
            ));
        }
        Ok(secret)
    }

    /// Runs a program of a step and checks its exit code and output.
    fn run_command(&self, command: &Command, context: &str) -> Result<()> {
        let mut args = command.args.clone();
        let secret_params: Vec<SecretParam> = command.secret.into_iter().collect();
        let secret_fds = SecretFds::prepare(&secret_params, self.secrets)?;
        for param in &secret_params {
            if let SecretDelivery::Argument { before } = param.delivery
                && self.secrets.has(param.key)
            {
                args.push(format!(
                    "{before}/proc/self/fd/{}",
                    secret_fds.number(param.key)
                ));
            }
        }
        let tool = Tool {
            program: command.program,
            args: &args,
            stdin: None,
            secret_fds: Some(&secret_fds),
            id: Some(&self.record.id),
            deadline: earlier_deadline(STEP_SECONDS, self.deadline),
        };
        let output = tool.run(Some(self.interrupts)).map_err(|error| {
            if error.class() == Class::Interrupted {
                return error;
            }
            let hint = error.hint_text().map(str::to_owned);
            let outer = Error::new(error.class(), context).because(error.summary());
            match hint {
                Some(hint) => outer.hint(hint),
                None => outer,
            }
        })?;
        let checked = match &command.output_check {
            _ if output.code != 0 && !command.accepted_codes.contains(&output.code) => {
                Err(format!("{}: exit status {}", command.program, output.code))
            }
            Some(check) => (check.verify)(&output.text, &check.wanted),
            None => Ok(()),
        };
        checked.map_err(|cause| {
            let hints = self.device.diagnostics.hints.iter();
            let hint = hints
                .filter(|(words, _)| output.text.contains(words) || cause.contains(words))
                .map(|(_, hint)| *hint)
                .next();
            let lines: Vec<String> = output
                .lines()
                .iter()
                .filter_map(|line| (self.device.diagnostics.line)(line))
                .map(|line| self.secrets.mask(line))
                .collect();
            Error::mount(context)
                .because(cause)
                .log(lines)
                .hint(hint.unwrap_or("check its server; see the host's kernel log: dmesg"))
        })
    }

    /// Sets the normal recovery timeout on the new paths.
    fn set_recovery_timeout(&self, before: Vec<ActivePath>) -> Result<()> {
        let sysfs = self.device.sysfs.clone();
        let Some(timeout) = sysfs.recovery_timeout else {
            return Ok(());
        };
        let set = move || {
            let new = active_paths(&sysfs).into_iter();
            let mut new = new.filter(|path| before.iter().all(|old| old.name != path.name));
            new.try_for_each(|path| {
                disk::write_attribute(&path.dir.join(timeout.file), timeout.normal)
            })
        };
        let written = self.session.host.run("setting a recovery timeout", set)?;
        if let Err(error) = written {
            tracing::warn!(
                "I/O on {} fails soon after a path is lost: {}",
                self.device.name,
                errno_text(error)
            );
        }
        Ok(())
    }

    /// Scans for the disk, and waits until it appears on every active path. After the time limit,
    /// one path is enough.
    fn find(&self) -> Result<Vec<(ActivePath, Disk)>> {
        let deadline = (Instant::now() + DISK_CHANGE_LIMIT).min(self.deadline);
        let sysfs = self.device.sysfs.clone();
        let scan = move || {
            let mut failed = None;
            for path in active_paths(&sysfs) {
                if let Some((file, text)) = &sysfs.scan
                    && path.disk(&sysfs).is_none()
                {
                    let files = disk::glob(&path.dir, file);
                    let written = files
                        .iter()
                        .try_for_each(|file| disk::write_attribute(file, text));
                    failed = written.err().or(failed);
                }
            }
            failed
        };
        let scan_error = self.session.host.run("scanning for a disk", scan)?;
        loop {
            self.interrupts.check()?;
            let sysfs = self.device.sysfs.clone();
            let open = move || {
                let active = active_paths(&sysfs);
                let all = active.len();
                let mut failed = None;
                let mut disks = Vec::new();
                for path in active {
                    match path.disk(&sysfs).map(|name| Disk::open(&name)) {
                        Some(Ok(disk)) => disks.push((path, disk)),
                        Some(Err(error)) => failed = Some(error),
                        None => {}
                    }
                }
                (disks, all, failed)
            };
            let (disks, all, failed) = self.session.host.run("opening a disk", open)?;
            if all > 0 && disks.len() == all {
                return Ok(disks);
            }
            if Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            if !disks.is_empty() {
                tracing::warn!(
                    "{} has a disk on {} of {all} paths only",
                    self.device.name,
                    disks.len()
                );
                return Ok(disks);
            }
            let error = Error::mount(format!("cannot find {}", self.device.name));
            return Err(match failed.or(scan_error) {
                Some(cause) => error
                    .because(cause)
                    .hint("the host needs devtmpfs on /dev, and the container --privileged"),
                None => error
                    .because("the server offers no such disk to this host")
                    .hint("check the number, and whether the server grants it to this host's name (`spc explain` prints the name)"),
            });
        }
    }
}
