//! Which volume is behind a device, and which of its disks is used: asked of the disks themselves, because numbers are
//! given to other volumes, and decided for one of them, because a file system must not be mounted by two.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::block::attach::AttachRequest;
use crate::block::multipath;
use crate::block::paths::{ActivePath, active_paths};
use crate::error::{Error, Result};
use crate::host::disk::{self, Disk};
use crate::kinds::block;
use crate::kinds::block::model::Identity;
use crate::state::attachments::Attachment;
use crate::sys;

/// How long multipathd may take to claim a disk, where one is running.
const CLAIM: Duration = Duration::from_secs(5);

/// How long a disk may take to say which volume it is.
const ANSWER: Duration = Duration::from_secs(10);

impl AttachRequest<'_> {
    /// Asks every disk which volume it is: all must be the same one, and the one that it was.
    pub(super) fn identify(
        &self,
        attachment: &Attachment,
        disks: Vec<(ActivePath, Disk)>,
    ) -> Result<(Vec<String>, Vec<Reached>)> {
        let mut volume: Option<Vec<String>> = None;
        let mut reached = Vec::new();
        let mut silent = None;
        for (up, disk) in disks {
            let (remembered, ids) = match self.ids(&up, &disk) {
                Ok(ids) => ids,
                Err(error) => {
                    tracing::warn!("{error}");
                    silent = Some(error);
                    let answers = false;
                    reached.push(Reached { disk, answers });
                    continue;
                }
            };
            if let Some(remembered) = remembered.filter(|remembered| *remembered != ids) {
                return Err(self.reused(&disk.name, &remembered, &ids).hint(format!(
                    "end what uses /dev/{0} on the host, then run there: echo 1 >/sys/block/{0}/device/delete",
                    disk.name
                )));
            }
            match &volume {
                Some(first) if *first != ids => {
                    return Err(Error::mount(format!("cannot use {}", self.device.name))
                        .because(format!(
                            "its ways lead to different volumes: {} and {}",
                            first.join(" "),
                            ids.join(" ")
                        ))
                        .hint(
                            "the servers must give the volume the same identity at each portal",
                        ));
                }
                _ => volume = Some(ids),
            }
            let answers = true;
            reached.push(Reached { disk, answers });
        }
        if let (None, Some(error)) = (&volume, silent) {
            return Err(error);
        }
        let ids = volume.unwrap_or_default();
        if ids.is_empty() {
            tracing::warn!(
                "{} does not say which volume it is: whether its number is given to another one will not be noticed",
                self.device.name
            );
        }
        if let Some(known) = attachment.devices.get(&self.device.name)
            && known.ids != ids
            && !known.ids.is_empty()
        {
            return Err(self
                .reused(&known.disk, &known.ids, &ids)
                .hint("unmount what was mounted from it (`spc ls`), then mount it again"));
        }
        for other in self.session.ledger.attachments()? {
            for (name, known) in &other.devices {
                if *name != self.device.name && known.ids == ids && !ids.is_empty() {
                    return Err(Error::mount(format!("cannot use {}", self.device.name))
                        .because(format!("it is the same volume as {name}, which is attached"))
                        .hint("mount it by that name: a file system must not be mounted by two ways at once"));
                }
            }
        }
        Ok((ids, reached))
    }

    fn reused(&self, disk: &str, was: &[String], is: &[String]) -> Error {
        Error::mount(format!("cannot use {}", self.device.name)).because(format!(
            "another volume is behind it now: {disk} was {}, it says {}",
            was.join(" "),
            if is.is_empty() {
                "nothing".into()
            } else {
                is.join(" ")
            }
        ))
    }

    /// What the kernel remembers of a volume's identity, where it does, and what it says now.
    fn ids(&self, up: &ActivePath, disk: &Disk) -> Result<(Option<Vec<String>>, Vec<String>)> {
        let fail = |e: io::Error| {
            Error::mount(format!(
                "cannot ask {} which volume it is",
                self.device.name
            ))
            .because(e)
            .hint("look whether its server answers, and at the host's kernel log: dmesg")
        };
        match self.device.shows.identity {
            Identity::Files(files) => {
                let dir = up.dir.clone();
                let read = move || files.iter().filter_map(|f| disk::held(&dir, f)).collect();
                Ok((None, self.session.host.run("reading an identity", read)?))
            }
            Identity::Scsi => {
                let fd = disk.handle().map_err(fail)?;
                let page = Path::new("/sys/class/block")
                    .join(&disk.name)
                    .join("device/vpd_pg83");
                let ask = move || {
                    let remembered = fs::read(page).ok();
                    sys::inquiry(&fd, 0x83, ANSWER).map(|now| (remembered, now))
                };
                let limit = ANSWER + Duration::from_secs(5);
                let asked =
                    self.session
                        .host
                        .run_within("asking a disk which volume it is", limit, ask)?;
                let (remembered, now) = asked.map_err(fail)?;
                let remembered = remembered.map(|page| block::volume_ids(&page));
                Ok((remembered, block::volume_ids(&now)))
            }
        }
    }

    /// Which of the disks is used: the multipath device over them, or the one that is in use already. A file system that
    /// was mounted by two of them at once would be destroyed.
    pub(super) fn choose(&self, attachment: &Attachment, disks: Vec<Reached>) -> Result<Disk> {
        let known = attachment.devices.get(&self.device.name);
        let known = known.map(|volume| volume.disk.clone());
        let scsi = matches!(self.device.shows.identity, Identity::Scsi);
        let choose = move || -> io::Result<Choice> {
            let until = Instant::now() + CLAIM;
            let multipath = || disks.iter().find_map(|path| path.disk.multipath());
            let mut found = multipath();
            while found.is_none() && scsi && multipathd() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
                found = multipath();
            }
            if let Some(multipath) = found {
                return Disk::open(&multipath).map(Choice::One);
            }
            let mut used = None;
            for (at, path) in disks.iter().enumerate() {
                if path.disk.in_use()? && used.replace(at).is_some() {
                    return Err(io::Error::other(
                        "more than one way to it is in use, and no multipath device has them",
                    ));
                }
            }
            let answers: Vec<usize> = (0..disks.len()).filter(|at| disks[*at].answers).collect();
            let recorded = known.and_then(|known| disks.iter().position(|p| p.disk.name == known));
            let at = match (used, recorded, &answers[..]) {
                (Some(at), ..) => at,
                (None, _, [_, _, ..]) if scsi => {
                    let answers = disks.into_iter().filter(|path| path.answers);
                    return Ok(Choice::Several(answers.map(|path| path.disk).collect()));
                }
                (None, Some(at), _) if disks[at].answers => at,
                (None, _, [first, ..]) => *first,
                _ => return Err(io::Error::other("none of its ways answers")),
            };
            if !disks[at].answers {
                return Err(io::Error::other(
                    "the way to it that is in use does not answer",
                ));
            }
            let mut disks = disks;
            Ok(Choice::One(disks.swap_remove(at).disk))
        };
        let failed = |e: io::Error| {
            Error::mount(format!("cannot use {}", self.device.name))
                .because(e)
                .hint("look on the host what uses its disks: lsblk")
        };
        let host = &self.session.host;
        let mut disks = match host.run("choosing a disk", choose)?.map_err(failed)? {
            Choice::One(disk) => return Ok(disk),
            Choice::Several(disks) => disks,
        };
        match multipath::join(host, &self.device.name, &disks) {
            Ok(()) => {
                let (disk, shows) = (disks.swap_remove(0), self.device.shows.clone());
                let open = move || {
                    for up in active_paths(&shows) {
                        if let Some(patience) = shows.patience
                            && let Err(error) =
                                disk::tell(&up.dir.join(patience.file), patience.little)
                        {
                            tracing::warn!(way = %up.name, %error, "a lost way will be noticed late");
                        }
                    }
                    let multipath = disk.multipath();
                    Disk::open(&multipath.ok_or(io::ErrorKind::NotFound)?)
                };
                host.run("opening a device", open)?.map_err(failed)
            }
            Err(error) => {
                tracing::warn!(
                    "{} uses one of {} ways, and stops if that fails: {error}",
                    self.device.name,
                    disks.len()
                );
                Ok(disks.swap_remove(0))
            }
        }
    }
}

/// A way to a disk.
pub(super) struct Reached {
    disk: Disk,
    answers: bool,
}

/// What is to be used.
enum Choice {
    One(Disk),
    /// These together.
    Several(Vec<Disk>),
}

/// Whether multipathd listens, which is by its abstract socket.
fn multipathd() -> bool {
    fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.contains("storage/multipathd"))
}
