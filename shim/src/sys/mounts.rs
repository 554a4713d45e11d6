//! Mounts, and which one a file is on.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use super::constants::{
    CWD, STATMOUNT_FS_SUBTYPE, STATMOUNT_FS_TYPE, SYS_FSCONFIG, SYS_FSPICK, SYS_STATMOUNT,
};
use super::errno::{Errno, Result, check};
use super::raw::{Fd, raw2, raw3, raw4, raw5};
use crate::text::{Name, name};

/// What `statx` says about a file, without asking a file system that may be busy or gone.
#[derive(Clone, Copy)]
pub struct Stat {
    pub mask: u32,
    pub is_mount_root: bool,
    pub mount_id: u64,
    pub inode: Inode,
}

/// Device and inode number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    pub major: u32,
    pub minor: u32,
    pub number: u64,
}

/// With mask 0 the kernel answers alone: the mount id, and whether this is a mount's root. Even a FUSE file
/// system that refuses this user, or whose daemon is the caller, is not asked.
#[inline(never)]
pub fn statx(dir: c_int, path: Name<'_>, mask: u32) -> Result<Stat> {
    let flags = libc::AT_EMPTY_PATH
        | libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_STATX_DONT_SYNC;
    statx_flags(dir, path, mask, flags)
}

/// The id of the mount that a file is on. ENOSYS before Linux 5.8, where nothing could be proved.
#[inline(never)]
pub fn mount_id(dir: c_int, path: Name<'_>) -> Result<u64> {
    let stat = statx(dir, path, 0)?;
    if stat.mask & libc::STATX_MNT_ID != 0 {
        Ok(stat.mount_id)
    } else {
        Err(Errno::NOSYS)
    }
}

/// The unique id of the mount that a file is on; 0 where the kernel has none (before Linux 6.8), or the file
/// system does not let this user look.
#[inline(never)]
pub fn unique_id(dir: c_int, path: Name<'_>) -> u64 {
    match statx(dir, path, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 => stat.mount_id,
        _ => 0,
    }
}

/// [`statx`], following a symlink.
#[inline(never)]
pub fn statx_follow(path: Name<'_>, mask: u32) -> Result<Stat> {
    statx_flags(
        CWD,
        path,
        mask,
        libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC,
    )
}

#[inline(never)]
fn statx_flags(dir: c_int, path: Name<'_>, mask: u32, flags: c_int) -> Result<Stat> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    let (flags, mask, into) = (flags as usize, mask as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the path ends with NUL; the kernel fills in one struct statx.
    check(unsafe {
        raw5(
            libc::SYS_statx,
            dir as usize,
            path.word(),
            flags,
            mask,
            into,
        )
    })?;
    // SAFETY: filled in, without an error.
    let stat = unsafe { stat.assume_init() };
    Ok(Stat {
        mask: stat.stx_mask,
        is_mount_root: stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        mount_id: stat.stx_mnt_id,
        inode: Inode {
            major: stat.stx_dev_major,
            minor: stat.stx_dev_minor,
            number: stat.stx_ino,
        },
    })
}

/// Asks statmount(2) for the type of a mount, by its unique id (Linux 6.8). The answer is a struct statmount.
pub fn statmount_kind(unique: u64, into: &mut [u8]) -> Result<usize> {
    let request = [24, unique, STATMOUNT_FS_TYPE | STATMOUNT_FS_SUBTYPE];
    let (request, to) = (request.as_ptr() as usize, into.as_mut_ptr() as usize);
    // SAFETY: the request has the layout of struct mnt_id_req and says its size; the kernel writes at most as many
    // bytes as it is given.
    check(unsafe { raw4(SYS_STATMOUNT, request, to, into.len(), 0) })
}

/// Also with a pidfd (Linux 5.8).
#[inline(never)]
pub fn enter_mount_namespace(namespace: Fd) -> Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { raw2(libc::SYS_setns, namespace.0, libc::CLONE_NEWNS as usize) }).map(drop)
}

/// Reconfigures the file system behind a descriptor without changing any setting of it or of its mount. What is opened
/// for it stays open.
pub fn reconfigure(fd: c_int) -> Result<usize> {
    const FSPICK_EMPTY_PATH: usize = 8;
    const FSCONFIG_CMD_RECONFIGURE: usize = 7;
    let empty = name(c"").word();
    // SAFETY: the path is a string, and the other arguments are numbers.
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
