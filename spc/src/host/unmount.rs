//! Unmounts a mount of the host that is known by its ids.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::host::mountinfo;
use crate::host::target::mount_id;

/// Takes the mount with these ids away from the host, wherever it is; run it on the host's thread.
/// True if it was there.
///
/// # Errors
/// The errno of umount2(2).
pub fn detach(
    target: &Path,
    id: u64,
    unique: u64,
    flags: UnmountFlags,
) -> std::result::Result<bool, Errno> {
    let at = |path: &Path| named(path, id, unique, ResolveFlags::empty());
    let mut found = at(target);
    for _ in 0..mountinfo::LOOKS {
        if found.is_some() {
            break;
        }
        let Some(entry) = mountinfo::find(id, unique).map_err(|_| Errno::IO)? else {
            break;
        };
        found = at(&entry.target);
        // Somebody may be renaming directories on the way.
        std::thread::sleep(Duration::from_millis(1));
    }
    match found {
        Some((parent, name)) => take(&parent, &name, flags).map(|()| true),
        None => Ok(false),
    }
}

/// As [`detach`], if the way to the target is in the kernel's cache: no file system is asked for it.
///
/// # Errors
/// The errno of umount2(2).
pub fn detach_at_once(target: &Path, id: u64, unique: u64) -> std::result::Result<bool, Errno> {
    match named(target, id, unique, ResolveFlags::CACHED) {
        Some((parent, name)) => take(&parent, &name, UnmountFlags::empty()).map(|()| true),
        None => Ok(false),
    }
}

/// The directory that a mount with these ids is in, and its name there, if it is at this path. By name, for a look at the
/// mount itself might wait for a dead server.
fn named(path: &Path, id: u64, unique: u64, how: ResolveFlags) -> Option<(OwnedFd, OsString)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat2(CWD, path.parent()?, flags, Mode::empty(), how).ok()?;
    let name = path.file_name()?.to_owned();
    mount_id(&parent, &name)
        .is_ok_and(|top| top.is_root && top.is(id, unique))
        .then_some((parent, name))
}

fn take(parent: &OwnedFd, name: &OsStr, flags: UnmountFlags) -> std::result::Result<(), Errno> {
    rustix::process::fchdir(parent)?;
    let result = unmount(name, flags | UnmountFlags::NOFOLLOW);
    // The thread must not keep the directory busy.
    rustix::process::chdir("/")?;
    result
}
