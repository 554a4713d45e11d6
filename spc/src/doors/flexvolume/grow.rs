//! A volume that has become larger on its server: the file system on a disk is made to fill it, in use as it is. What is
//! not on a disk has grown already or has not, and that is all there is to say.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FsWord, Mode, OFlags, StatVfs, fstat, fstatfs, fstatvfs, openat};

use super::reply::Reply;
use crate::doors::kubelet;
use crate::error::{Error, Reason, Result, errno_text};
use crate::host::disk::tell;
use crate::host::errand::{Answer, Errand};
use crate::host::target::{Pinned, Rules, Walk, show, walk};
use crate::mount::mounter::Session;
use crate::sys::resize;

/// How long it may take; kubelet tries again.
const LIMIT: Duration = Duration::from_secs(80);

const EXT4: FsWord = 0xef53;
const XFS: FsWord = 0x5846_5342;

/// Has it done by a process of its own: a dead disk keeps whoever asks it.
///
/// # Errors
/// It does not answer.
pub fn run(dir: &str, wanted: &str) -> Result<Reply> {
    let words = ["flexvolume", "--work", "grow", dir, wanted];
    let mut errand = Errand::send(&words, b"")?;
    let failed = || Error::mount(format!("cannot grow {}", show(Path::new(dir))));
    match errand.line(Instant::now() + LIMIT, || Ok(()))? {
        Answer::Line(line) => {
            Reply::read(&line).ok_or_else(|| failed().because("its process said something else"))
        }
        Answer::End => Err(failed().because("its process ended")),
        Answer::Late => Err(failed()
            .because(format!("no answer: waited {} s", LIMIT.as_secs()))
            .reason_is(Reason::NoAnswer)
            .hint("look whether its server is there: spc ls")),
    }
}

/// Does it, in that process.
///
/// # Errors
/// It has not the size that is wanted, and cannot be given it.
pub fn work(dir: &str, wanted: &str) -> Result<Reply> {
    let wanted = wanted.parse().map_err(|_| Error::usage("bad size"))?;
    let path = PathBuf::from(dir);
    kubelet::check(&path)?;
    let session = Session::open()?;
    let job = move || on_host(&path, wanted);
    session.host.run_within("growing a volume", LIMIT, job)?
}

fn on_host(path: &Path, wanted: u64) -> Result<Reply> {
    let rules = Rules {
        mkdir: None,
        system: true,
        plain_tail: kubelet::depth(path),
    };
    let fail =
        |e: io::Error| Error::mount(format!("cannot grow {}", show(path))).because(errno_text(e));
    let Walk::Pinned(Pinned { dir, mount, .. }, _) = walk(path, rules)? else {
        return Err(fail(io::ErrorKind::NotFound.into()));
    };
    if !mount.is_root {
        return Err(
            Error::mount(format!("nothing is mounted on {}", show(path)))
                .hint("kubelet asks for this once the pod has its volume"),
        );
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(&dir, ".", flags, Mode::empty()).map_err(|e| fail(e.into()))?;
    let magic = fstatfs(&root).map_err(|e| fail(e.into()))?.f_type;
    let before = size(&root).map_err(fail)?;
    let Some(disk) = disk_of(&root).filter(|_| matches!(magic, EXT4 | XFS)) else {
        return measured(path, bytes(&before), wanted);
    };
    look_anew(&disk);
    let available = disk_size(&disk).map_err(fail)?;
    if available < wanted {
        return measured(path, available, wanted);
    }
    let grown = match magic {
        EXT4 => resize::ext4(&root, available / before.f_bsize.max(1)),
        _ => resize::xfs(&root, available),
    };
    grown.map_err(|e| {
        let denied = e.kind() == io::ErrorKind::PermissionDenied;
        let failed = fail(e);
        match denied {
            true => failed.hint("the kernel wants CAP_SYS_RESOURCE for ext4 and CAP_SYS_ADMIN for xfs of whoever does it: kubelet's service must have them"),
            false => failed.hint("the kernel's log says more: dmesg"),
        }
    })?;
    let after = size(&root).map_err(fail)?;
    if bytes(&after) < bytes(&before) {
        return measured(path, bytes(&after), bytes(&before));
    }
    tracing::info!(
        target = %show(path), before = bytes(&before), after = bytes(&after), disk = available,
        "the file system fills its disk"
    );
    Ok(Reply::size(available))
}

/// Success if there are as many bytes as are wanted.
fn measured(path: &Path, bytes: u64, wanted: u64) -> Result<Reply> {
    if bytes >= wanted {
        return Ok(Reply::size(bytes));
    }
    Err(Error::mount(format!(
        "the volume on {} has {bytes} bytes, not {wanted}",
        show(path)
    ))
    .hint("make it larger on its server"))
}

fn size(root: &OwnedFd) -> io::Result<StatVfs> {
    Ok(fstatvfs(root)?)
}

fn bytes(size: &StatVfs) -> u64 {
    size.f_blocks.saturating_mul(size.f_frsize)
}

/// The directory of sysfs for the disk that a file system is on, if it is on one.
fn disk_of(root: &OwnedFd) -> Option<PathBuf> {
    let device = fstat(root).ok()?.st_dev;
    let number = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let disk = Path::new("/sys/dev/block").join(number);
    disk.exists().then_some(disk)
}

/// Has the kernel ask what the disk is reached through how large it is now: SCSI disks and RBD images are only asked when
/// they are attached, or when their server says so. Each path of a disk with several is asked.
fn look_anew(disk: &Path) {
    let slaves = std::fs::read_dir(disk.join("slaves"));
    let slaves = slaves.into_iter().flatten().flatten();
    for disk in slaves.map(|slave| slave.path()).chain([disk.to_owned()]) {
        for file in ["device/rescan", "device/refresh"] {
            // One of them is there, or none; the size that is read afterwards counts.
            let _ = tell(&disk.join(file), "1");
        }
    }
}

fn disk_size(disk: &Path) -> io::Result<u64> {
    let sectors = std::fs::read_to_string(disk.join("size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(512))
}
