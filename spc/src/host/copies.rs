//! Copies of the host's mounts in the container's own table.
//!
//! Where a directory of the host is bound into the container as a slave, as docker does it for `-v /:/host`, a new
//! mount of the host comes along. It is no use there: it is one more entry to keep, and while a process of the
//! container is in it, the host cannot unmount (EBUSY).

use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{UnmountFlags, unmount};

use super::mountinfo::{self, Entry};
use super::target::{mount_id, show};
use crate::error::{Error, Result, errno_text};

/// Takes the copies of a mount of the host out of the calling thread's table, which is the container's. Copies that
/// others would lose as well stay.
///
/// # Errors
/// The container's table cannot be read, or a copy cannot be unmounted.
pub fn drop_copies(made: &Entry) -> Result<()> {
    let Some(group) = made.peers else {
        return Ok(());
    };
    let table = mountinfo::read().map_err(|e| {
        Error::system("cannot read the container's mount table").because(errno_text(e))
    })?;
    for copy in slaves_of(group, &table) {
        // Not if it is covered by another mount, or was taken away meanwhile.
        let is_top = mount_id(CWD, copy.target.as_os_str()).is_ok_and(|top| top.id == copy.id);
        if is_top {
            drop_copy(&copy.target)?;
        }
    }
    Ok(())
}

/// Mounts that follow this peer group, nobody follows them, and nobody follows what they are on.
fn slaves_of(group: u64, table: &[Entry]) -> impl Iterator<Item = &Entry> {
    table.iter().filter(move |entry| {
        entry.master == Some(group)
            && entry.peers.is_none()
            && table
                .iter()
                .any(|parent| parent.id == entry.parent && parent.peers.is_none())
    })
}

fn drop_copy(copy: &Path) -> Result<()> {
    unmount(copy, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| {
        Error::system(format!(
            "cannot drop the copy of the mount at {}",
            show(copy)
        ))
        .because(errno_text(e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_copies_that_nobody_follows_are_dropped() {
        let table: Vec<Entry> = [
            "10 1 0:1 / /host rw master:1 - tmpfs root rw",
            "11 10 0:2 / /host/mnt rw master:7 - fuse.glusterfs n:/v rw",
            "12 10 0:3 / /host/srv rw master:8 - fuse.glusterfs n:/v rw",
            "20 1 0:1 / /shared rw shared:5 master:1 - tmpfs root rw",
            "21 20 0:2 / /shared/mnt rw shared:6 master:7 - fuse.glusterfs n:/v rw",
            "22 20 0:2 / /shared/srv rw master:7 - fuse.glusterfs n:/v rw",
            "30 1 0:2 / /peer rw shared:7 - fuse.glusterfs n:/v rw",
        ]
        .iter()
        .map(|line| Entry::parse(line.as_bytes()).unwrap())
        .collect();
        let ids: Vec<u64> = slaves_of(7, &table).map(|entry| entry.id).collect();
        assert_eq!(ids, [11]);
    }
}
