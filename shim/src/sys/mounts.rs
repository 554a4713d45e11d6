//! Mounts, and the mount that a file is on.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use super::constants::{CWD, SYS_FSCONFIG, SYS_FSPICK, SYS_STATMOUNT};
use super::errno::{Errno, Result, check};
use super::raw::{Fd, raw2, raw3, raw4, raw5};
use crate::text::{ThinCStr, thin};

/// Result of statx(2) without a request to the file system, which may not respond.
#[derive(Clone, Copy)]
pub struct Stat {
    /// Fields that the kernel filled in, `STATX_*`.
    pub mask: u32,
    /// Whether the file is the root of a mount.
    pub is_mount_root: bool,
    /// Id of the mount that the file is on; the unique id if the mask asked for that one.
    pub mount_id: u64,
    /// Device and inode number.
    pub inode: Inode,
    /// Type and permissions.
    pub mode: u32,
}

/// Device and inode number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// Device: the major number in the upper half.
    pub device: u64,
    /// Inode number.
    pub number: u64,
}

/// Calls statx(2) without following a symlink.
///
/// With mask 0, the kernel returns the mount id and whether the file is a mount root, and makes no
/// request to the file system. So the call succeeds on a FUSE file system that refuses this user,
/// or whose daemon is the caller.
#[inline(never)]
pub fn statx(dir: c_int, path: ThinCStr<'_>, mask: u32) -> Result<Stat> {
    let flags = libc::AT_EMPTY_PATH
        | libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_STATX_DONT_SYNC;
    statx_at(dir, path.as_arg(), mask, flags)
}

/// Returns the id of the mount that a file is on. Fails with ENOSYS before Linux 5.8, on which a
/// mount cannot be proved.
#[inline(never)]
pub fn mount_id(dir: c_int, path: ThinCStr<'_>) -> Result<u64> {
    let stat = statx(dir, path, 0)?;
    if stat.mask & libc::STATX_MNT_ID != 0 {
        Ok(stat.mount_id)
    } else {
        Err(Errno::NOSYS)
    }
}

/// Returns the unique id of the mount that a file is on. Returns 0 if the kernel has no such ids
/// (before Linux 6.8), or the file system refuses this user.
#[inline(never)]
pub fn unique_id(dir: c_int, path: ThinCStr<'_>) -> u64 {
    match statx(dir, path, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 => stat.mount_id,
        _ => 0,
    }
}

/// Calls statx(2) and follows a symlink.
#[inline(never)]
pub fn statx_follow(path: ThinCStr<'_>, mask: u32) -> Result<Stat> {
    let flags = libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    statx_at(CWD, path.as_arg(), mask, flags)
}

/// Calls statx(2). The address of the path may be invalid.
#[inline(never)]
pub fn statx_at(dir: c_int, path: usize, mask: u32, flags: c_int) -> Result<Stat> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    let (flags, mask, into) = (flags as usize, mask as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the kernel checks the path, and fills in one struct statx.
    check(unsafe { raw5(libc::SYS_statx, dir as usize, path, flags, mask, into) })?;
    // SAFETY: the kernel filled in the structure, because the call succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok(Stat {
        mask: stat.stx_mask,
        is_mount_root: stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        mount_id: stat.stx_mnt_id,
        inode: Inode {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            number: stat.stx_ino,
        },
        mode: stat.stx_mode.into(),
    })
}

/// Whether this process's namespace has a mount with this unique id, by statmount(2) (Linux 6.8).
pub fn has_mount(unique: u64) -> bool {
    let request = [24, unique, 0];
    let mut reply = MaybeUninit::<[u64; 64]>::uninit();
    let (request, size) = (request.as_ptr() as usize, size_of_val(&reply));
    // SAFETY: the request has the layout of struct mnt_id_req and contains its size; the kernel
    // writes no more bytes than the reply has.
    let result = unsafe { raw4(SYS_STATMOUNT, request, reply.as_mut_ptr() as usize, size, 0) };
    result != -(libc::ENOENT as isize)
}

/// Enters a mount namespace by its file or, since Linux 5.8, by a pidfd.
#[inline(never)]
pub fn enter_mount_namespace(namespace: Fd) -> Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { raw2(libc::SYS_setns, namespace.0, libc::CLONE_NEWNS as usize) }).map(drop)
}

/// Reconfigures the file system behind a descriptor without changing a setting of the file system
/// or the mount. The descriptor of the context stays open.
pub fn reconfigure(fd: c_int) -> Result<usize> {
    const FSPICK_EMPTY_PATH: usize = 8;
    const FSCONFIG_CMD_RECONFIGURE: usize = 7;
    let empty = thin(c"").as_arg();
    // SAFETY: the path ends with a NUL, and the other arguments are numbers.
    unsafe {
        let context = check(raw3(SYS_FSPICK, fd as usize, empty, FSPICK_EMPTY_PATH))?;
        check(raw5(
            SYS_FSCONFIG,
            context,
            FSCONFIG_CMD_RECONFIGURE,
            0,
            0,
            0,
        ))
    }
}
