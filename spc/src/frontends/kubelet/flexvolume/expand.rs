//! A volume that has become larger on its server: the file system on a disk is made to fill it, in use as it is. What is
//! not on a disk has grown already or has not, and that is all there is to say.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FsWord, Mode, OFlags, StatVfs, fstat, fstatfs, fstatvfs, openat};

use crate::error::{Error, Reason, Result, show};
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::paths;
use crate::host::disk::{Disk, tell};
use crate::host::target::{Pinned, Rules, Walk, walk};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{self, Subprocess};
use crate::state::Session;
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
    let mut child = Subprocess::spawn_tied(&words, b"")?;
    let failed = || Error::mount(format!("cannot grow {}", show(Path::new(dir))));
    match child.line(CancelToken::at(Instant::now() + LIMIT))? {
        subprocess::Reply::Line(line) => {
            Reply::read(&line).ok_or_else(|| failed().because("its process said something else"))
        }
        subprocess::Reply::Eof => Err(failed().because("its process ended")),
        subprocess::Reply::Timeout => Err(failed()
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
    paths::check(&path)?;
    let session = Session::open()?;
    let job = move || on_host(&path, wanted);
    session.host.run_within("growing a volume", LIMIT, job)?
}

fn on_host(path: &Path, wanted: u64) -> Result<Reply> {
    let rules = Rules {
        mkdir: None,
        system: true,
        no_symlink_tail: paths::depth(path),
    };
    let fail = |e: io::Error| Error::mount(format!("cannot grow {}", show(path))).because(e);
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
    let own = match magic {
        EXT4 => ext4_size(&disk),
        _ => xfs_size(&root),
    };
    let own = own.map_err(fail)?;
    if !own.fills(available) {
        return Err(Error::mount(format!(
            "the file system on {} has {} bytes, its disk has {available}",
            show(path),
            own.bytes
        ))
        .hint("the kernel's log may say why it did not grow: dmesg"));
    }
    tracing::info!(
        target = %show(path), before = bytes(&before), after = own.bytes, disk = available,
        "the file system fills its disk"
    );
    Ok(Reply::size(available))
}

/// How large a file system says that it is, all that it needs for itself included.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    bytes: u64,
    /// What is less than this may be left over at the end of a disk.
    step: u64,
}

impl Size {
    fn fills(&self, disk: u64) -> bool {
        disk.checked_sub(self.bytes)
            .is_some_and(|left| left < self.step)
    }
}

/// Where ext4 has its superblock on a disk.
const SUPERBLOCK: u64 = 1024;

/// What the superblock of the mounted ext4 says: the kernel keeps it where a reader of the disk finds it.
fn ext4_size(disk: &Path) -> io::Result<Size> {
    let name = std::fs::canonicalize(disk)?;
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let mut block = [0; 1024];
    Disk::open(&name)?
        .fd
        .read_exact_at(&mut block, SUPERBLOCK)?;
    ext4_of(&block).ok_or_else(|| io::Error::other("its superblock is none of ext4"))
}

fn ext4_of(superblock: &[u8; 1024]) -> Option<Size> {
    let number = |at: usize| {
        let bytes = superblock.get(at..at + 4)?.try_into().ok()?;
        Some(u64::from(u32::from_le_bytes(bytes)))
    };
    let short = |at: usize| Some(number(at)? & 0xffff);
    if short(0x38)? != EXT4.cast_unsigned() {
        return None;
    }
    let bits = number(0x18)?.try_into().ok()?;
    let block = 1024_u64.checked_shl(bits)?;
    let cluster = 1_u64.checked_shl(u32::try_from(number(0x1c)?).ok()?.checked_sub(bits)?)?;
    // With block numbers of 64 bits: the upper half, and longer descriptors of groups.
    let (upper, descriptor) = match number(0x60)? & 0x80 {
        0 => (0, 32),
        _ => (number(0x150)?, short(0xfe)?),
    };
    let blocks = upper << 32 | number(0x4)?;
    let groups = blocks.div_ceil(number(0x20)?.max(1)) + 1;
    let descriptors = (groups * descriptor).div_ceil(block) + short(0xce)?;
    let inodes = (number(0x28)? * short(0x58)?).div_ceil(block);
    Some(Size {
        bytes: blocks.checked_mul(block)?,
        // The kernel makes no last group in which the tables that it may need would not find room: a superblock, its
        // descriptors, two bitmaps and inodes.
        step: (1 + descriptors + 2 + inodes + cluster + 1).checked_mul(block)?,
    })
}

fn xfs_size(root: &OwnedFd) -> io::Result<Size> {
    /// A last group with fewer blocks is not made (`XFS_MIN_AG_BLOCKS`).
    const LEAST: u64 = 64;
    let (blocks, block) = resize::xfs_blocks(root)?;
    let block = u64::from(block);
    Ok(Size {
        bytes: blocks.saturating_mul(block),
        step: LEAST * block,
    })
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_superblock_of_ext4_says_how_large_it_is() {
        let mut superblock = [0; 1024];
        assert_eq!(ext4_of(&superblock), None);
        // 64 MiB in blocks of 4 KiB, 2048 inodes of 256 bytes in each group, room for 16 more blocks of descriptors.
        for (at, number) in [
            (0x04, 16384_u32),
            (0x18, 2),
            (0x1c, 2),
            (0x20, 32768),
            (0x28, 2048),
            (0x38, 0x1_ef53),
            (0x58, 256),
            (0xcc, 16 << 16),
            (0xfc, 64 << 16),
            (0x150, 1),
        ] {
            superblock[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let mib = 1 << 20;
        let size = ext4_of(&superblock).unwrap();
        let most = (1 + (1 + 16) + 2 + 128 + 1) * 4096;
        assert_eq!((size.bytes, size.step), (64 * mib, most + 4096));
        assert!(size.fills(64 * mib) && size.fills(64 * mib + most));
        assert!(!size.fills(64 * mib + most + 4096) && !size.fills(64 * mib - 1));
        superblock[0x60] = 0x80;
        assert_eq!(ext4_of(&superblock).unwrap().bytes, (16 << 40) + 64 * mib);
    }

    /// What mkfs.ext4 makes fills its file, and is seen not to when that becomes larger.
    #[test]
    fn what_mkfs_makes_is_understood() {
        let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let file = std::fs::File::from(memory);
        for (options, size) in [
            (&[][..], 24_u64 << 20),
            (&["-b", "4096"], 200 << 20),
            (&["-O", "^64bit,^resize_inode"], 64 << 20),
            (&["-O", "bigalloc", "-C", "65536"], 64 << 20),
        ] {
            file.set_len(0).unwrap();
            file.set_len(size).unwrap();
            let made = std::process::Command::new("mkfs.ext4")
                .args(["-q", "-F"])
                .args(options)
                .arg(&path)
                .status();
            assert!(made.unwrap().success());
            let mut superblock = [0; 1024];
            file.read_exact_at(&mut superblock, SUPERBLOCK).unwrap();
            let own = ext4_of(&superblock).unwrap();
            assert!(own.fills(size), "{options:?}: {own:?}");
            assert!(!own.fills(size + (16 << 20)), "{options:?}: {own:?}");
        }
    }
}
