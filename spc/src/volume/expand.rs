//! Expansion of a mounted volume to the size that it has on its server.
//!
//! An ext4 or xfs file system is grown online to fill its disk. For volumes that are not on a disk,
//! only the size is checked.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FsWord, Mode, OFlags, StatVfs, fstat, fstatfs, fstatvfs, openat};

use crate::error::{Error, Reason, Result, show};
use crate::host::disk::{Disk, write_attribute};
use crate::host::target::{Pinned, Rules, Walk, walk};
use crate::state::Session;
use crate::sys::resize;
use crate::volume::paths;

/// Limit for growing a file system; kubelet tries again after an error.
pub const LIMIT: Duration = Duration::from_secs(80);

/// Magic numbers, as fstatfs(2) returns them.
const EXT4: FsWord = 0xef53;
const XFS: FsWord = 0x5846_5342;

/// Grows the volume on `path` to at least `wanted` bytes, and returns its size. Run it in a process
/// that may be abandoned: a system call on a dead disk can block forever.
///
/// # Errors
/// The volume is smaller, and cannot be grown.
pub fn grow(path: &Path, wanted: u64) -> Result<u64> {
    let path = path.to_owned();
    paths::check(&path)?;
    let session = Session::open()?;
    let job = move || on_host(&path, wanted);
    session.host.run_within("growing a volume", LIMIT, job)?
}

/// Grows the volume on `path`. Runs on the host's thread.
fn on_host(path: &Path, wanted: u64) -> Result<u64> {
    let rules = Rules {
        mkdir: None,
        system: true,
        no_symlink_tail: paths::kubelet_tail(path),
    };
    let fail = |e: io::Error| Error::mount(format!("cannot grow {}", show(path))).because(e);
    let Walk::Pinned(Pinned { dir, mount, .. }, _) = walk(path, rules)? else {
        return Err(fail(io::ErrorKind::NotFound.into()));
    };
    if !mount.is_root {
        return Err(
            Error::mount(format!("nothing is mounted on {}", show(path)))
                .hint("kubelet expands a volume only after it is mounted for the pod"),
        );
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(&dir, ".", flags, Mode::empty()).map_err(|e| fail(e.into()))?;
    let magic = fstatfs(&root).map_err(|e| fail(e.into()))?.f_type;
    let before = size(&root).map_err(fail)?;
    let Some(disk) = disk_of(&root).filter(|_| matches!(magic, EXT4 | XFS)) else {
        return check_size(path, bytes(&before), wanted);
    };
    rescan(&disk);
    let available = disk_size(&disk).map_err(fail)?;
    if available < wanted {
        return check_size(path, available, wanted);
    }
    let grown = match magic {
        EXT4 => resize::ext4(&root, available / before.f_bsize.max(1)),
        _ => resize::xfs(&root, available),
    };
    grown.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::PermissionDenied => {
                "growing needs CAP_SYS_RESOURCE for ext4 and CAP_SYS_ADMIN for xfs: kubelet's \
                 service must have them"
            }
            _ => "see the host's kernel log: dmesg",
        };
        fail(e).hint(hint)
    })?;
    let after = match magic {
        EXT4 => ext4_size(&disk),
        _ => xfs_size(&root),
    };
    let after = after.map_err(fail)?;
    if !after.fills(available) {
        return Err(Error::mount(format!(
            "the file system on {} has {} bytes, its disk has {available}",
            show(path),
            after.bytes
        ))
        .hint("the host's kernel log may say why it did not grow: dmesg"));
    }
    tracing::info!(
        target = %show(path), before = bytes(&before), after = after.bytes, disk = available,
        "the file system fills its disk"
    );
    Ok(available)
}

/// Size of a file system according to its superblock, metadata included.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    bytes: u64,
    /// Bytes that a full disk may leave unused at its end: the file system grows in steps, and the
    /// rest is smaller than this.
    step: u64,
}

impl Size {
    /// Returns whether a disk of this size, in bytes, has no room for another step.
    fn fills(&self, disk: u64) -> bool {
        disk.checked_sub(self.bytes)
            .is_some_and(|left| left < self.step)
    }
}

/// Position of the ext4 superblock on a disk, in bytes.
const SUPERBLOCK: u64 = 1024;

/// Reads the size of a mounted ext4 from its superblock. The kernel keeps the current superblock in
/// the page cache of the disk, which the read uses.
fn ext4_size(disk: &Path) -> io::Result<Size> {
    let name = std::fs::canonicalize(disk)?;
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let mut block = [0; 1024];
    Disk::open(&name)?
        .fd
        .read_exact_at(&mut block, SUPERBLOCK)?;
    parse_ext4(&block).ok_or_else(|| io::Error::other("the disk has no ext4 superblock"))
}

/// Parses an ext4 superblock (ext4 Data Structures and Algorithms, "Super Block" in the kernel's
/// documentation). Returns none for other bytes.
fn parse_ext4(superblock: &[u8; 1024]) -> Option<Size> {
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
    // The feature 64bit adds upper halves of block numbers, and longer group descriptors.
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
        // The kernel adds no last group without room for its tables: a copy of the superblock,
        // group descriptors, two bitmaps and an inode table.
        step: (1 + descriptors + 2 + inodes + cluster + 1).checked_mul(block)?,
    })
}

/// Reads the size of a mounted xfs.
fn xfs_size(root: &OwnedFd) -> io::Result<Size> {
    /// Smallest last allocation group, in blocks (`XFS_MIN_AG_BLOCKS`).
    const MIN_GROUP: u64 = 64;
    let (blocks, block) = resize::xfs_blocks(root)?;
    let block = u64::from(block);
    Ok(Size {
        bytes: blocks.saturating_mul(block),
        step: MIN_GROUP * block,
    })
}

/// Returns the size of the volume, if it has at least `wanted` bytes.
fn check_size(path: &Path, bytes: u64, wanted: u64) -> Result<u64> {
    if bytes >= wanted {
        return Ok(bytes);
    }
    Err(Error::mount(format!(
        "the volume on {} has {bytes} bytes, not {wanted}",
        show(path)
    ))
    .reason_is(Reason::Usage)
    .hint("enlarge it on its server"))
}

fn size(root: &OwnedFd) -> io::Result<StatVfs> {
    Ok(fstatvfs(root)?)
}

/// Returns the size of a file system in bytes according to statvfs(3).
fn bytes(size: &StatVfs) -> u64 {
    size.f_blocks.saturating_mul(size.f_frsize)
}

/// Returns the sysfs directory of the disk that a file system is on, if there is one.
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

/// Has the kernel read the disk's size again, on each path of a multipath disk.
///
/// By itself, the kernel reads the size of a SCSI disk or RBD image only when it is attached, or
/// when the server announces a change.
fn rescan(disk: &Path) {
    let slaves = std::fs::read_dir(disk.join("slaves"));
    let slaves = slaves.into_iter().flatten().flatten();
    for disk in slaves.map(|slave| slave.path()).chain([disk.to_owned()]) {
        for file in ["device/rescan", "device/refresh"] {
            // At most one of the files exists. Only the size read afterwards matters.
            let _ = write_attribute(&disk.join(file), "1");
        }
    }
}

/// Returns the size of a disk in bytes, from its sysfs directory (unit there: 512 bytes).
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
    fn size_of_ext4_is_read_from_its_superblock() {
        let mut superblock = [0; 1024];
        assert_eq!(parse_ext4(&superblock), None);
        // 64 MiB in blocks of 4 KiB, 2048 inodes of 256 bytes in each group, and 16 reserved blocks
        // for group descriptors.
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
        let size = parse_ext4(&superblock).unwrap();
        let most = (1 + (1 + 16) + 2 + 128 + 1) * 4096;
        assert_eq!((size.bytes, size.step), (64 * mib, most + 4096));
        assert!(size.fills(64 * mib) && size.fills(64 * mib + most));
        assert!(!size.fills(64 * mib + most + 4096) && !size.fills(64 * mib - 1));
        superblock[0x60] = 0x80;
        assert_eq!(
            parse_ext4(&superblock).unwrap().bytes,
            (16 << 40) + 64 * mib
        );
    }

    /// A new ext4 fills its file, and no longer does after the file was enlarged.
    #[test]
    fn file_systems_of_mkfs_ext4_fill_their_file() {
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
            let own = parse_ext4(&superblock).unwrap();
            assert!(own.fills(size), "{options:?}: {own:?}");
            assert!(!own.fills(size + (16 << 20)), "{options:?}: {own:?}");
        }
    }
}
