//! Verifies the volume behind a device, and chooses the disk to use.
//!
//! The disks report their volume themselves, because servers reuse the numbers of removed volumes.
//! Only one disk is used, because mounting a file system through two disks at once would destroy
//! it.

use std::fs::File;
use std::io::{BufRead, BufReader};
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

/// Time limit for a running multipathd(8) to take over a disk.
const MULTIPATHD_LIMIT: Duration = Duration::from_secs(5);

/// Time limit of a SCSI INQUIRY for the volume identity.
const INQUIRY_LIMIT: Duration = Duration::from_secs(10);

impl AttachRequest<'_> {
    /// Reads the volume identity of every disk. Returns it with the disks.
    ///
    /// # Errors
    /// Fails if the identities differ from each other or from the recorded one, if another device
    /// is the same volume, or if no disk responds.
    pub(super) fn identify(
        &self,
        attachment: &Attachment,
        disks: Vec<(ActivePath, Disk)>,
    ) -> Result<(Vec<String>, Vec<Candidate>)> {
        let mut volume: Option<Vec<String>> = None;
        let mut candidates = Vec::new();
        let mut read_error = None;
        for (path, disk) in disks {
            let (cached, ids) = match self.ids(&path, &disk) {
                Ok(ids) => ids,
                Err(error) => {
                    tracing::warn!("{error}");
                    read_error = Some(error);
                    let responds = false;
                    candidates.push(Candidate { disk, responds });
                    continue;
                }
            };
            if let Some(cached) = cached.filter(|cached| *cached != ids) {
                return Err(self.reused(&disk.name, &cached, &ids).hint(format!(
                    "end what uses /dev/{0} on the host, then run there: echo 1 >/sys/block/{0}/device/delete",
                    disk.name
                )));
            }
            match &volume {
                Some(first) if *first != ids => {
                    return Err(Error::mount(format!("cannot use {}", self.device.name))
                        .because(format!(
                            "its paths lead to different volumes: {} and {}",
                            first.join(" "),
                            ids.join(" ")
                        ))
                        .hint(
                            "the servers must give the volume the same identity at each portal",
                        ));
                }
                _ => volume = Some(ids),
            }
            let responds = true;
            candidates.push(Candidate { disk, responds });
        }
        if let (None, Some(error)) = (&volume, read_error) {
            return Err(error);
        }
        let ids = volume.unwrap_or_default();
        if ids.is_empty() {
            tracing::warn!(
                "{} reports no volume identity: spc will not notice if the server gives its number to another volume",
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
                        .hint("mount it by that name: a file system must not be mounted through two devices at once"));
                }
            }
        }
        Ok((ids, candidates))
    }

    /// Returns the error for a device number that now belongs to another volume.
    fn reused(&self, disk: &str, was: &[String], is: &[String]) -> Error {
        Error::mount(format!("cannot use {}", self.device.name)).because(format!(
            "another volume is behind it now: {disk} was {}, and reports {}",
            was.join(" "),
            if is.is_empty() {
                "nothing".into()
            } else {
                is.join(" ")
            }
        ))
    }

    /// Returns the identity that the kernel has cached, if any, and the one that the disk reports
    /// now.
    fn ids(&self, path: &ActivePath, disk: &Disk) -> Result<(Option<Vec<String>>, Vec<String>)> {
        let fail = |e: io::Error| {
            Error::mount(format!(
                "cannot read the volume identity of {}",
                self.device.name
            ))
            .because(e)
            .hint("check its server; see the host's kernel log: dmesg")
        };
        match self.device.sysfs.identity {
            Identity::Files(files) => {
                let dir = path.dir.clone();
                let read = move || {
                    files
                        .iter()
                        .filter_map(|f| disk::read_first(&dir, f))
                        .collect()
                };
                Ok((None, self.session.host.run("reading an identity", read)?))
            }
            Identity::Scsi => {
                let fd = disk.handle().map_err(fail)?;
                let page = Path::new("/sys/class/block")
                    .join(&disk.name)
                    .join("device/vpd_pg83");
                let read = move || {
                    let cached = fs::read(page).ok();
                    sys::inquiry(&fd, 0x83, INQUIRY_LIMIT).map(|current| (cached, current))
                };
                let limit = INQUIRY_LIMIT + Duration::from_secs(5);
                let inquired =
                    self.session
                        .host
                        .run_within("reading the identity of a disk", limit, read)?;
                let (cached, current) = inquired.map_err(fail)?;
                let cached = cached.map(|page| block::volume_ids(&page));
                Ok((cached, block::volume_ids(&current)))
            }
        }
    }

    /// Chooses the disk to use: the multipath device over all disks, or the disk that is in use
    /// already.
    ///
    /// # Errors
    /// Fails if several disks are in use without a multipath device, or the chosen disk does not
    /// respond.
    pub(super) fn choose(&self, attachment: &Attachment, disks: Vec<Candidate>) -> Result<Disk> {
        let known = attachment.devices.get(&self.device.name);
        let known = known.map(|volume| volume.disk.clone());
        let scsi = matches!(self.device.sysfs.identity, Identity::Scsi);
        let choose = move || -> io::Result<Choice> {
            let deadline = Instant::now() + MULTIPATHD_LIMIT;
            let multipath = || disks.iter().find_map(|path| path.disk.multipath());
            let mut found = multipath();
            while found.is_none() && scsi && multipathd_runs() && Instant::now() < deadline {
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
                        "more than one path to it is in use, and no multipath device joins them",
                    ));
                }
            }
            let responding: Vec<usize> =
                (0..disks.len()).filter(|at| disks[*at].responds).collect();
            let recorded = known.and_then(|known| disks.iter().position(|p| p.disk.name == known));
            let at = match (used, recorded, &responding[..]) {
                (Some(at), ..) => at,
                (None, _, [_, _, ..]) if scsi => {
                    let responding = disks.into_iter().filter(|path| path.responds);
                    return Ok(Choice::Several(responding.map(|path| path.disk).collect()));
                }
                (None, Some(at), _) if disks[at].responds => at,
                (None, _, [first, ..]) => *first,
                _ => return Err(io::Error::other("none of its paths responds")),
            };
            if !disks[at].responds {
                return Err(io::Error::other("the path in use does not respond"));
            }
            let mut disks = disks;
            Ok(Choice::One(disks.swap_remove(at).disk))
        };
        let failed = |e: io::Error| {
            Error::mount(format!("cannot use {}", self.device.name))
                .because(e)
                .hint("check on the host what uses its disks: lsblk")
        };
        let host = &self.session.host;
        let mut disks = match host.run("choosing a disk", choose)?.map_err(failed)? {
            Choice::One(disk) => return Ok(disk),
            Choice::Several(disks) => disks,
        };
        match multipath::join(host, &self.device.name, &disks) {
            Ok(()) => {
                let (disk, sysfs) = (disks.swap_remove(0), self.device.sysfs.clone());
                let open = move || {
                    for path in active_paths(&sysfs) {
                        if let Some(timeout) = sysfs.recovery_timeout
                            && let Err(error) =
                                disk::write_attribute(&path.dir.join(timeout.file), timeout.short)
                        {
                            tracing::warn!(way = %path.name, %error, "cannot shorten the recovery timeout; a lost path delays I/O");
                        }
                    }
                    let multipath = disk.multipath();
                    Disk::open(&multipath.ok_or(io::ErrorKind::NotFound)?)
                };
                host.run("opening a device", open)?.map_err(failed)
            }
            Err(error) => {
                tracing::warn!(
                    "{} uses one of {} paths, and I/O stops if that path fails: {error}",
                    self.device.name,
                    disks.len()
                );
                Ok(disks.swap_remove(0))
            }
        }
    }
}

/// Disk on one path, as a candidate for the mount.
pub(super) struct Candidate {
    disk: Disk,
    responds: bool,
}

/// Disk or disks to use.
enum Choice {
    One(Disk),
    /// Disks to join into a multipath device.
    Several(Vec<Disk>),
}

/// Returns whether multipathd(8) runs, by its abstract socket in `/proc/net/unix`.
fn multipathd_runs() -> bool {
    // Any user can make the file long.
    let lines = File::open("/proc/net/unix").map(|file| BufReader::new(file).lines());
    let mut lines = lines.into_iter().flatten().map_while(std::io::Result::ok);
    lines.any(|line| line.ends_with("storage/multipathd"))
}
