//! Unmounts a mount of the host by its ids.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::host::mount_id::mount_id;
use crate::host::mountinfo;

/// Unmounts the mount with these ids, also if it is not at `target` any more. Returns whether it
/// existed. Run it on the host's thread.
///
/// # Errors
/// Returns the errno of umount2(2), or EIO if the mount table cannot be read.
pub fn detach(
    target: &Path,
    id: u64,
    unique: u64,
    flags: UnmountFlags,
) -> std::result::Result<bool, Errno> {
    let find_at = |path: &Path| find(path, id, unique, ResolveFlags::empty());
    let mut found = find_at(target);
    for _ in 0..mountinfo::FIND_ATTEMPTS {
        if found.is_some() {
            break;
        }
        let Some(entry) = mountinfo::find(id, unique).map_err(|_| Errno::IO)? else {
            break;
        };
        found = find_at(&entry.target);
        // Another process may be renaming directories in the path, so that the next attempt waits.
        std::thread::sleep(Duration::from_millis(1));
    }
    match found {
        Some((parent, name)) => unmount_at(&parent, &name, flags).map(|()| true),
        None => Ok(false),
    }
}

/// Unmounts the mount at `target` like [`detach`], only if the path is in the kernel's cache. No
/// request goes to a file system in the path, so that the call does not block there.
///
/// # Errors
/// Returns the errno of umount2(2).
pub fn detach_cached(target: &Path, id: u64, unique: u64) -> std::result::Result<bool, Errno> {
    match find(target, id, unique, ResolveFlags::CACHED) {
        Some((parent, name)) => unmount_at(&parent, &name, UnmountFlags::empty()).map(|()| true),
        None => Ok(false),
    }
}

/// Returns parent directory and name of the mount with these ids, if it is at this path. The mount
/// itself is not opened, because that could block on a dead server.
fn find(path: &Path, id: u64, unique: u64, resolve: ResolveFlags) -> Option<(OwnedFd, OsString)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat2(CWD, path.parent()?, flags, Mode::empty(), resolve).ok()?;
    let name = path.file_name()?.to_owned();
    mount_id(&parent, &name)
        .is_ok_and(|top| top.is_root && top.matches(id, unique))
        .then_some((parent, name))
}

/// Unmounts a name in a directory, without following a symbolic link.
fn unmount_at(
    parent: &OwnedFd,
    name: &OsStr,
    flags: UnmountFlags,
) -> std::result::Result<(), Errno> {
    rustix::process::fchdir(parent)?;
    let result = unmount(name, flags | UnmountFlags::NOFOLLOW);
    // A working directory would keep the file system busy.
    rustix::process::chdir("/")?;
    result
}
