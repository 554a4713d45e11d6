//! Attaches block devices before their file system is mounted; [`release`] detaches them.
//!
//! What there is to do comes from the kind, as data. Devices that are reached through the same thing (a session with a
//! target) share one [`Attachment`] in the ledger, which is written before anything is attached and changed only
//! under its lock. A device is in use for as long as a record of a mount names it, or the kernel holds it.

use std::time::{Duration, Instant};

use crate::block::node_record::set;
use crate::block::paths::{ActivePath, active_paths, look, session_key};
use crate::error::{Class, Error, Result, errno_text};
use crate::helper::secret_fds::SecretFds;
use crate::helper::tool::{Tool, within};
use crate::host::disk::{self, Disk};
use crate::kinds::block::model::{Command, Device, DevicePath, Step, Value};
use crate::kinds::model::{SecretDelivery, SecretParam};
use crate::options::Secrets;
use crate::process::interrupts::Interrupts;
use crate::state::attachments::{Attachment, Volume};
use crate::state::lock::Lock;
use crate::state::{Record, Session};

/// How long one step on a way may take; a dead portal is given up by its own limits before that.
pub(super) const STEP: u64 = 60;

/// How long the kernel may take to show a disk that it was told to look for, and to take away one.
pub(super) const APPEAR: Duration = Duration::from_secs(10);

/// What attaching needs to know.
pub struct AttachRequest<'a> {
    /// Settings, host, ledger.
    pub session: &'a Session,
    /// The device.
    pub device: &'a Device,
    /// The mount's record, which is in the ledger.
    pub record: &'a Record,
    /// The name that was asked for in place of the host's own.
    pub host_name: Option<&'a str>,
    /// Secrets.
    pub secrets: &'a Secrets,
    /// When it has to be done.
    pub deadline: Instant,
    /// Signals.
    pub interrupts: &'a Interrupts,
}

/// A device that is there. Nobody else prepares or mounts it until this is dropped.
pub struct Attached {
    /// The disk.
    pub disk: Disk,
    _lock: Lock,
}

impl AttachRequest<'_> {
    /// Attaches it, or finds it attached, and makes sure that it is the volume that it was.
    ///
    /// # Errors
    /// No way to it came up, it does not show, or it is another volume than before. What was done until then stays
    /// in the ledger, to be undone by [`release`].
    pub fn run(&self) -> Result<Attached> {
        let ledger = &self.session.ledger;
        let cancel = self.interrupts.until(self.deadline);
        let own = ledger.lock_named(&self.device.name, cancel)?;
        let _through = ledger.lock_named(&session_key(&self.device.session_key), cancel)?;
        let up = look(self.session, &self.device.shows)?;
        let mut attachment = match ledger.attachment(&self.device.session_key)? {
            Some(attachment) => attachment,
            None => Attachment {
                session_key: self.device.session_key.clone(),
                foreign: up.iter().map(|way| way.name.clone()).collect(),
                ..Attachment::default()
            },
        };
        if !attachment.sources.contains(&self.record.source) {
            attachment.sources.push(self.record.source.clone());
        }
        ledger.put_attachment(&attachment)?;
        self.bring_up(&up)?;
        let disks = self.find()?;
        self.be_patient(up)?;
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
        Ok(Attached { disk, _lock: own })
    }

    pub(super) fn steps(&self, way: &DevicePath, host_name: Option<&str>) -> Result<()> {
        let context = || format!("cannot attach {} at {}", self.device.name, way.name);
        for step in &way.steps {
            match step {
                Step::Run(command) => self.command(command, &context())?,
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
                            .because(format!("its record cannot be written: {}", errno_text(e)))
                    })?;
                }
            }
        }
        Ok(())
    }

    fn secret(&self, key: &str) -> Result<Vec<u8>> {
        let secret = self.secrets.get(key).ok_or_else(|| {
            Error::usage(format!("{key} is missing"))
                .hint(format!("give it by --secret {key}=file:PATH"))
        })?;
        let secret = secret.expose().as_bytes().to_vec();
        let bad = secret.iter().any(u8::is_ascii_control)
            || secret.trim_ascii().len() != secret.len()
            || secret.is_empty();
        if bad {
            return Err(Error::usage(format!("bad {key}")).because(
                "it is empty, or begins or ends with a space, or holds a control character",
            ));
        }
        Ok(secret)
    }

    fn command(&self, command: &Command, what: &str) -> Result<()> {
        let mut args = command.args.clone();
        let passes: Vec<SecretParam> = command.secret.into_iter().collect();
        let secret_fds = SecretFds::prepare(&passes, self.secrets)?;
        for pass in &passes {
            if let SecretDelivery::Argument { before } = pass.delivery
                && self.secrets.has(pass.key)
            {
                args.push(format!(
                    "{before}/proc/self/fd/{}",
                    secret_fds.number(pass.key)
                ));
            }
        }
        let tool = Tool {
            program: command.program,
            args: &args,
            stdin: None,
            secret_fds: Some(&secret_fds),
            id: Some(&self.record.id),
            deadline: within(STEP, self.deadline),
        };
        let done = tool.run(Some(self.interrupts)).map_err(|error| {
            if error.class() == Class::Interrupted {
                return error;
            }
            let hint = error.hint_text().map(str::to_owned);
            let outer = Error::new(error.class(), what).because(error.summary());
            match hint {
                Some(hint) => outer.hint(hint),
                None => outer,
            }
        })?;
        let told = match &command.output_check {
            _ if done.code != 0 && !command.fine.contains(&done.code) => {
                Err(format!("{}: exit status {}", command.program, done.code))
            }
            Some(tells) => (tells.find)(&done.text, &tells.what),
            None => Ok(()),
        };
        told.map_err(|cause| {
            let hints = self.device.diagnostics.hints.iter();
            let known = hints
                .filter(|(words, _)| done.text.contains(words) || cause.contains(words))
                .map(|(_, hint)| *hint)
                .next();
            let lines: Vec<String> = done
                .lines()
                .iter()
                .filter_map(|line| (self.device.diagnostics.line)(line))
                .map(|line| self.secrets.mask(line))
                .collect();
            Error::mount(what).because(cause).log(lines).hint(
                known.unwrap_or(
                    "look whether its server answers, and at the host's kernel log: dmesg",
                ),
            )
        })
    }

    /// Has new ways wait for their server as is usual.
    fn be_patient(&self, before: Vec<ActivePath>) -> Result<()> {
        let shows = self.device.shows.clone();
        let Some(patience) = shows.patience else {
            return Ok(());
        };
        let tell = move || {
            let new = active_paths(&shows).into_iter();
            let mut new = new.filter(|way| before.iter().all(|old| old.name != way.name));
            new.try_for_each(|way| disk::tell(&way.dir.join(patience.file), patience.usual))
        };
        let told = self.session.host.run("telling the kernel", tell)?;
        if let Err(error) = told {
            tracing::warn!(
                "{} stops soon after a way is lost: {}",
                self.device.name,
                errno_text(error)
            );
        }
        Ok(())
    }

    /// Has the kernel look for the disk, and waits until it shows on every way, or on one and no more come.
    fn find(&self) -> Result<Vec<(ActivePath, Disk)>> {
        let until = (Instant::now() + APPEAR).min(self.deadline);
        let shows = self.device.shows.clone();
        let scan = move || {
            let mut failed = None;
            for up in active_paths(&shows) {
                if let Some((file, text)) = &shows.scan
                    && up.disk(&shows).is_none()
                {
                    let files = disk::glob(&up.dir, file);
                    let told = files.iter().try_for_each(|file| disk::tell(file, text));
                    failed = told.err().or(failed);
                }
            }
            failed
        };
        let told = self.session.host.run("looking for a disk", scan)?;
        loop {
            self.interrupts.check()?;
            let shows = self.device.shows.clone();
            let open = move || {
                let up = active_paths(&shows);
                let all = up.len();
                let mut failed = None;
                let mut disks = Vec::new();
                for way in up {
                    match way.disk(&shows).map(|name| Disk::open(&name)) {
                        Some(Ok(disk)) => disks.push((way, disk)),
                        Some(Err(error)) => failed = Some(error),
                        None => {}
                    }
                }
                (disks, all, failed)
            };
            let (disks, all, failed) = self.session.host.run("looking for a disk", open)?;
            if all > 0 && disks.len() == all {
                return Ok(disks);
            }
            if Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            if !disks.is_empty() {
                tracing::warn!(
                    "{} shows on {} of {all} ways",
                    self.device.name,
                    disks.len()
                );
                return Ok(disks);
            }
            let error = Error::mount(format!("cannot find {}", self.device.name));
            return Err(match failed.or(told) {
                Some(cause) => error
                    .because(cause)
                    .hint("the host needs devtmpfs on /dev, and the container --privileged"),
                None => error
                    .because("its server was reached, but shows no such disk to this host")
                    .hint("check the number, and whether the server grants it to this host's name: `spc explain` shows that"),
            });
        }
    }
}
