//! Propagated copies of the host's mounts in the container's mount table.
//!
//! A slave bind mount of a host directory, such as docker's `-v /:/host`, receives each new mount
//! of the host. spc unmounts these copies. The container does not need them, and the host cannot
//! unmount (EBUSY) while a process of the container uses a copy.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result, show};
use crate::host::mount_id::mount_id;
use crate::host::mountinfo::{self, Entry};

/// Unmounts the copies of a host mount in the mount table of the calling thread, which is the
/// container's. `parent` is the host mount on which `mount` is. The copies are newer than the mount
/// with the unique id `newer_than`, unless it is 0. A copy that propagates further stays.
///
/// # Errors
/// Fails if the container's table cannot be read, or a copy cannot be unmounted.
pub fn drop_copies(mount: &Entry, parent: &Entry, newer_than: u64) -> Result<()> {
    if mount.peers.is_none() || parent.peers.is_none() {
        return Ok(());
    }
    let fail =
        |e: std::io::Error| Error::system("cannot read the container's mount table").because(e);
    let table = mountinfo::newer_than(newer_than).map_err(fail)?;
    let mut copy_parents = Vec::new();
    for copy in table.iter().filter(|copy| is_end_slave(copy, mount)) {
        copy_parents.extend(mountinfo::find(copy.parent, copy.parent_unique).map_err(fail)?);
    }
    for copy in copies_of(mount, parent, &table, &copy_parents) {
        drop_copy(copy)?;
    }
    Ok(())
}

/// Unmounts the copies of several host mounts, each given with its parent mount. Reads the
/// container's table once.
///
/// # Errors
/// Fails like [`drop_copies`].
pub fn drop_all_copies(all: &[(Entry, Entry)]) -> Result<()> {
    let mut all = all.iter();
    let shared = |pair: &&(Entry, Entry)| pair.0.peers.is_some() && pair.1.peers.is_some();
    let Some(first) = all.find(shared) else {
        return Ok(());
    };
    let table = mountinfo::read()
        .map_err(|e| Error::system("cannot read the container's mount table").because(e))?;
    for (mount, parent) in std::iter::once(first).chain(all.filter(shared)) {
        for copy in copies_of(mount, parent, &table, &table) {
            drop_copy(copy)?;
        }
    }
    Ok(())
}

/// Returns whether a mount is a slave of another one's peer group and propagates to no mount
/// itself.
fn is_end_slave(copy: &Entry, master: &Entry) -> bool {
    copy.master == master.peers && copy.peers.is_none()
}

/// Returns the copies of a mount. A copy is a slave of the mount, its parent is a slave of the
/// mount's parent, and it has the same position in the parent's file system. The position matters
/// because a bind mount is also a slave of the peer group of its source, which may contain `/host`
/// itself.
fn copies_of<'a>(
    mount: &Entry,
    parent: &Entry,
    table: &'a [Entry],
    copy_parents: &[Entry],
) -> impl Iterator<Item = &'a Entry> {
    table.iter().filter(move |copy| {
        is_end_slave(copy, mount)
            && copy.root == mount.root
            && copy_parents.iter().any(|copy_parent| {
                copy_parent.id == copy.parent
                    && is_end_slave(copy_parent, parent)
                    && path_in_parent(copy, copy_parent) == path_in_parent(mount, parent)
            })
    })
}

/// Returns the path of a mount point in the file system of its parent mount.
fn path_in_parent(mount: &Entry, parent: &Entry) -> Option<PathBuf> {
    let below = mount.target.strip_prefix(&parent.target).ok()?;
    Some(parent.root.join(below))
}

/// Unmounts a copy, unless it is covered by another mount or gone.
fn drop_copy(copy: &Entry) -> Result<()> {
    let fail = |error: Errno| {
        let target = show(&copy.target);
        Error::system(format!(
            "cannot unmount the container's copy of the mount: {target}"
        ))
        .because(error)
    };
    let Some(pinned) = pin_if_top(copy).map_err(fail)? else {
        return Ok(());
    };
    let path = format!("/proc/self/fd/{}", pinned.as_raw_fd());
    match unmount(&path, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        // EINVAL is no failure if another process has unmounted the copy meanwhile.
        Err(Errno::INVAL) if pin_if_top(copy).map_err(fail)?.is_none() => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// Opens the root of a copy (`O_PATH`). None if another mount covers the copy, or it is gone.
/// Symbolic links are not followed: a user of the host could place one that leads to another mount
/// of the container.
fn pin_if_top(copy: &Entry) -> std::result::Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mode, resolve) = (Mode::empty(), ResolveFlags::NO_SYMLINKS);
    match openat2(CWD, &copy.target, flags, mode, resolve) {
        Ok(pinned) => {
            let is_copy = mount_id(&pinned, OsStr::new(""))?.id == copy.id;
            Ok(is_copy.then_some(pinned))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> Entry {
        Entry::parse(line.as_bytes()).unwrap()
    }

    fn copies(mount: &str, parent: &str, table: &[&str]) -> Vec<u64> {
        let table: Vec<Entry> = table.iter().map(|line| entry(line)).collect();
        copies_of(&entry(mount), &entry(parent), &table, &table)
            .map(|copy| copy.id)
            .collect()
    }

    #[test]
    fn copies_that_propagate_further_stay() {
        let table = [
            "10 1 0:1 / /host rw master:1 - tmpfs root rw",
            "11 10 0:2 / /host/mnt/a rw master:7 - fuse.glusterfs n:/v rw",
            "12 10 0:3 / /host/mnt/b rw master:8 - fuse.glusterfs n:/v rw",
            "15 1 0:1 /mnt /data rw master:1 - tmpfs root rw",
            "16 15 0:2 / /data/a rw master:7 - fuse.glusterfs n:/v rw",
            "20 1 0:1 / /shared rw shared:5 master:1 - tmpfs root rw",
            "21 20 0:2 / /shared/mnt/a rw shared:6 master:7 - fuse.glusterfs n:/v rw",
            "22 20 0:2 / /shared/mnt/a rw master:7 - fuse.glusterfs n:/v rw",
            "30 1 0:2 / /peer rw shared:7 - fuse.glusterfs n:/v rw",
        ];
        let mount = "5 2 0:2 / /mnt/a rw shared:7 - fuse.glusterfs n:/v rw";
        let parent = "2 1 0:1 / / rw shared:1 - tmpfs root rw";
        assert_eq!(copies(mount, parent, &table), [11, 16]);
    }

    #[test]
    fn source_of_a_bind_mount_is_not_taken_for_a_copy() {
        let table = [
            "10 1 0:1 / /host rw master:1 - tmpfs root rw",
            "11 10 0:1 /srv /host/mnt/new rw master:1 - tmpfs root rw",
            "12 10 0:1 /srv /host/mnt/old rw master:1 - tmpfs root rw",
        ];
        let mount = "5 2 0:1 /srv /mnt/new rw shared:1 - tmpfs root rw";
        let parent = "2 1 0:1 / / rw shared:1 - tmpfs root rw";
        assert_eq!(copies(mount, parent, &table), [11]);
    }
}
