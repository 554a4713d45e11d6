//! Copies of the host's mounts in the container's own table.
//!
//! Where a directory of the host is bound into the container as a slave, as docker does it for `-v /:/host`, a new
//! mount of the host comes along. It is no use there: it is one more entry to keep, and while a process of the
//! container is in it, the host cannot unmount (EBUSY).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result, show};
use crate::host::mountinfo::{self, Entry};
use crate::host::target::mount_id;

/// Takes the copies of a mount of the host, made on another one, out of the calling thread's table, which is the
/// container's. They are younger than the mount with this id that is never used again, if that is not 0. Copies that others
/// would lose as well stay.
///
/// # Errors
/// The container's table cannot be read, or a copy cannot be unmounted.
pub fn drop_copies(made: &Entry, on: &Entry, younger_than: u64) -> Result<()> {
    if made.peers.is_none() || on.peers.is_none() {
        return Ok(());
    }
    let fail =
        |e: std::io::Error| Error::system("cannot read the container's mount table").because(e);
    let table = mountinfo::younger(younger_than).map_err(fail)?;
    let mut parents = Vec::new();
    for copy in table.iter().filter(|copy| follows(copy, made)) {
        parents.extend(mountinfo::find(copy.parent, copy.parent_unique).map_err(fail)?);
    }
    for copy in copies_of(made, on, &table, &parents) {
        drop_copy(copy)?;
    }
    Ok(())
}

/// As [`drop_copies`], of many, each with the mount that it was made on: the table is read once.
///
/// # Errors
/// As [`drop_copies`].
pub fn drop_all_copies(all: &[(Entry, Entry)]) -> Result<()> {
    let mut all = all.iter();
    let shared = |pair: &&(Entry, Entry)| pair.0.peers.is_some() && pair.1.peers.is_some();
    let Some(first) = all.find(shared) else {
        return Ok(());
    };
    let table = mountinfo::read()
        .map_err(|e| Error::system("cannot read the container's mount table").because(e))?;
    for (made, on) in std::iter::once(first).chain(all.filter(shared)) {
        for copy in copies_of(made, on, &table, &table) {
            drop_copy(copy)?;
        }
    }
    Ok(())
}

/// Whether a mount follows another one, and nobody follows it.
fn follows(copy: &Entry, of: &Entry) -> bool {
    copy.master == of.peers && copy.peers.is_none()
}

/// Mounts that follow the new one, in the same place of a mount that follows what it is on; nobody follows either of
/// them. A bind follows its source's group as well, which `/host` itself may be in: so the place counts.
fn copies_of<'a>(
    made: &Entry,
    on: &Entry,
    table: &'a [Entry],
    parents: &[Entry],
) -> impl Iterator<Item = &'a Entry> {
    table.iter().filter(move |copy| {
        follows(copy, made)
            && copy.root == made.root
            && parents.iter().any(|parent| {
                parent.id == copy.parent
                    && follows(parent, on)
                    && place(copy, parent) == place(made, on)
            })
    })
}

/// Where a mount is in the file system that it is mounted on.
fn place(mount: &Entry, on: &Entry) -> Option<PathBuf> {
    let below = mount.target.strip_prefix(&on.target).ok()?;
    Some(on.root.join(below))
}

fn drop_copy(copy: &Entry) -> Result<()> {
    let fail = |error: Errno| {
        let target = show(&copy.target);
        Error::system(format!("cannot drop the copy of the mount at {target}")).because(error)
    };
    let Some(pinned) = top(copy).map_err(fail)? else {
        return Ok(());
    };
    let path = format!("/proc/self/fd/{}", pinned.as_raw_fd());
    match unmount(&path, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        // Somebody else was faster, or may not be.
        Err(Errno::INVAL) if top(copy).map_err(fail)?.is_none() => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// A copy, pinned, for a link that a user of the host puts on the way could lead to another mount of the container; none
/// if it is covered by another mount, or was taken away.
fn top(copy: &Entry) -> std::result::Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mode, resolve) = (Mode::empty(), ResolveFlags::NO_SYMLINKS);
    match openat2(CWD, &copy.target, flags, mode, resolve) {
        Ok(pinned) => {
            let is_it = mount_id(&pinned, OsStr::new(""))?.id == copy.id;
            Ok(is_it.then_some(pinned))
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

    fn copies(made: &str, on: &str, table: &[&str]) -> Vec<u64> {
        let table: Vec<Entry> = table.iter().map(|line| entry(line)).collect();
        copies_of(&entry(made), &entry(on), &table, &table)
            .map(|copy| copy.id)
            .collect()
    }

    #[test]
    fn only_copies_that_nobody_follows_are_dropped() {
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
        let made = "5 2 0:2 / /mnt/a rw shared:7 - fuse.glusterfs n:/v rw";
        let on = "2 1 0:1 / / rw shared:1 - tmpfs root rw";
        assert_eq!(copies(made, on, &table), [11, 16]);
    }

    #[test]
    fn the_source_of_a_bind_stays() {
        let table = [
            "10 1 0:1 / /host rw master:1 - tmpfs root rw",
            "11 10 0:1 /srv /host/mnt/new rw master:1 - tmpfs root rw",
            "12 10 0:1 /srv /host/mnt/old rw master:1 - tmpfs root rw",
        ];
        let made = "5 2 0:1 /srv /mnt/new rw shared:1 - tmpfs root rw";
        let on = "2 1 0:1 / / rw shared:1 - tmpfs root rw";
        assert_eq!(copies(made, on, &table), [11]);
    }
}
