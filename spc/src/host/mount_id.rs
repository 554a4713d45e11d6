//! Mount ids: which mount a path is on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;

/// `STATX_MNT_ID_UNIQUE`, Linux 6.8; older kernels do not set it in the reply.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Mount that a path is on, and whether the path is its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    /// Mount id, as in proc_pid_mountinfo(5). The kernel reuses it after the mount is gone.
    pub id: u64,
    /// Unique id, which is never reused; 0 before Linux 6.8.
    pub unique: u64,
    /// Whether the path is the root of this mount.
    pub is_root: bool,
}

impl MountId {
    /// Returns whether this is the mount with these ids. The unique ids decide if both are known.
    pub fn matches(&self, id: u64, unique: u64) -> bool {
        if self.unique != 0 && unique != 0 {
            self.unique == unique
        } else {
            self.id == id
        }
    }
}

/// Returns the mount that an entry of a directory is on; with an empty name, the mount of the
/// directory itself. The call sends no request to the file system, which may be dead.
///
/// # Errors
/// Returns the errno of statx(2) or openat(2).
pub fn mount_id(dir: impl AsFd, name: &OsStr) -> std::result::Result<MountId, Errno> {
    match statx_mount_id(&dir, name) {
        // The kernel refuses all calls on an inode whose type a FUSE server has changed.
        Err(Errno::IO) if !name.is_empty() => fdinfo_mount_id(&dir, name),
        found => found,
    }
}

/// Does the same as [`mount_id`], by the entry of a file descriptor in procfs. No call reaches the
/// inode.
fn fdinfo_mount_id(dir: impl AsFd, name: &OsStr) -> std::result::Result<MountId, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&dir, name, flags, Mode::empty())?;
    let info = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let info = std::fs::read_to_string(info).map_err(|_| Errno::IO)?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let id = id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::IO)?;
    Ok(MountId {
        id,
        unique: 0,
        is_root: statx_mount_id(&dir, OsStr::new(""))?.id != id,
    })
}

/// Does the same as [`mount_id`], by statx(2) alone.
fn statx_mount_id(dir: impl AsFd, name: &OsStr) -> std::result::Result<MountId, Errno> {
    let flags = AtFlags::EMPTY_PATH
        | AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::STATX_DONT_SYNC;
    let plain = statx(&dir, name, flags, StatxFlags::MNT_ID)?;
    let unique = statx(&dir, name, flags, MNT_ID_UNIQUE)?;
    Ok(MountId {
        id: plain.stx_mnt_id,
        unique: if unique.stx_mask & MNT_ID_UNIQUE.bits() != 0 {
            unique.stx_mnt_id
        } else {
            0
        },
        is_root: plain.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_id_decides_if_both_are_known() {
        let mount = MountId {
            id: 7,
            unique: 100,
            is_root: true,
        };
        assert!(mount.matches(9, 100) && !mount.matches(7, 101));
        assert!(mount.matches(7, 0) && !mount.matches(8, 0));
    }
}
