//! Finds out which recorded mounts still exist on the host.
//!
//! Where the kernel has statmount(2), each mount is looked up by its unique id. Otherwise the mount
//! table is read. A path lookup is the last resort, because it can block on a dead file system.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::host::hash::hash;
use crate::host::mount_id::{MountId, mount_id};
use crate::host::mountinfo::{self, Entry};
use crate::state::{Record, Session};
use crate::sys::statmount;

/// Identity of a recorded mount: its ids and the hash of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountKey {
    /// Mount id, as in mountinfo.
    pub id: u64,
    /// Unique mount id, which is never reused; 0 where the kernel has none.
    pub unique: u64,
    /// Hash of the target, which is the name of the record.
    pub name: u64,
}

impl MountKey {
    /// Returns the key of a record; none if the record belongs to an earlier boot.
    pub fn from_record(record: &Record) -> Option<Self> {
        record.is_of_this_boot().then(|| Self {
            id: record.mount_id,
            unique: record.unique_id,
            name: hash(Path::new(&record.target)),
        })
    }

    /// Returns the key of a record whose mount ids are not known.
    pub fn none(name: u64) -> Self {
        Self {
            id: 0,
            unique: 0,
            name,
        }
    }

    fn is_at(self, path: &Path) -> bool {
        hash(path) == self.name
    }

    /// Returns the entry unless the kernel has given its plain id to another mount since.
    fn confirm(self, entry: Entry) -> std::io::Result<Option<Entry>> {
        match self.unique {
            0 => return Ok(self.is_at(&entry.target).then_some(entry)),
            unique if entry.unique == unique => return Ok(Some(entry)),
            _ => {}
        }
        match statmount::plain_id(self.unique) {
            Ok(id) => Ok((id == entry.id).then_some(entry)),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
            // A seccomp filter that is older than the kernel refuses statmount(2).
            Err(_) => self.walk(entry),
        }
    }

    /// Returns the entry if the mount at its path is the recorded one. Parent directories may have
    /// been renamed, so the path is read again a few times.
    fn walk(self, mut entry: Entry) -> std::io::Result<Option<Entry>> {
        for _ in 0..mountinfo::FIND_ATTEMPTS {
            match top(&entry.target) {
                Ok(top) if top.id == self.id => {
                    return Ok((top.unique == self.unique).then_some(entry));
                }
                // Another mount covers it: the path is the only evidence.
                _ if self.is_at(&entry.target) => return Ok(Some(entry)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            match mountinfo::find(self.id, self.unique)? {
                Some(now) => entry = now,
                None => return Ok(None),
            }
        }
        // The path changed each time, so the mount exists.
        Ok(Some(entry))
    }
}

/// Returns the topmost mount at a path, looked up by name in its parent directory.
fn top(path: &Path) -> std::result::Result<MountId, Errno> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let parent = open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount_id(&parent, path.file_name().unwrap_or_default())
}

/// Returns the mountinfo entry of a recorded mount; none if the mount no longer exists.
///
/// # Errors
/// Fails if the mount table cannot be read.
pub fn entry_of(session: &Session, record: &Record) -> Result<Option<Entry>> {
    let Some(wanted) = MountKey::from_record(record) else {
        return Ok(None);
    };
    let find = move || match mountinfo::find(wanted.id, wanted.unique)? {
        Some(entry) => wanted.confirm(entry),
        None => Ok(None),
    };
    session
        .host
        .run("looking at a mount", find)?
        .map_err(cannot_read)
}

/// Returns the entries of many recorded mounts, in their order. Without statmount(2), the mount
/// table is read once.
///
/// # Errors
/// Fails if the mount table cannot be read.
pub fn entries_of(session: &Session, records: &[Record]) -> Result<Vec<Option<Entry>>> {
    let all: Vec<Option<MountKey>> = records.iter().map(MountKey::from_record).collect();
    let find = move || -> std::io::Result<Vec<Option<Entry>>> {
        let mut table: Option<HashMap<u64, Entry>> = None;
        let confirm = |wanted: Option<MountKey>| {
            let Some(wanted) = wanted else {
                return Ok(None);
            };
            if table.is_none() {
                if let Some(answer) = mountinfo::query(wanted.unique) {
                    return answer;
                }
                let entries = mountinfo::read()?.into_iter();
                table = Some(entries.map(|entry| (entry.id, entry)).collect());
            }
            match table.as_mut().and_then(|table| table.remove(&wanted.id)) {
                Some(entry) => wanted.confirm(entry),
                None => Ok(None),
            }
        };
        all.into_iter().map(confirm).collect()
    };
    session
        .host
        .run("looking at the mounts", find)?
        .map_err(cannot_read)
}

/// Returns the recorded mounts whose id is missing from listmount(2). Confirm each with
/// [`entry_of`]; the other mounts are not touched.
///
/// # Errors
/// Fails if the mount table cannot be read.
pub fn missing(session: &Session, keys: impl Iterator<Item = MountKey>) -> Result<Vec<MountKey>> {
    let list = || statmount::list_after(0).unwrap_or_default();
    let listed = session.host.run("listing the mounts", list)?;
    let (mut missing, mut unlisted) = (Vec::new(), Vec::new());
    for key in keys {
        if key.unique == 0 || listed.is_empty() {
            unlisted.push(key);
        } else if listed.binary_search(&key.unique).is_err() {
            missing.push(key);
        }
    }
    if !unlisted.is_empty() {
        let search = move || missing_in_table(unlisted);
        let searched = session.host.run("looking at the mounts", search)?;
        missing.extend(searched.map_err(cannot_read)?);
    }
    Ok(missing)
}

fn missing_in_table(mut keys: Vec<MountKey>) -> std::io::Result<Vec<MountKey>> {
    keys.sort_unstable_by_key(|key| key.id);
    let first = |id: u64| keys.partition_point(|key| key.id < id);
    let with = |id: u64| first(id)..first(id + 1);
    let mut present = vec![false; keys.len()];
    mountinfo::search(
        |id| !with(id).is_empty(),
        |entry| {
            for index in with(entry.id) {
                present[index] = keys[index].confirm(entry.clone())?.is_some();
            }
            Ok(false)
        },
    )?;
    let mut present = present.into_iter();
    keys.retain(|_| present.next() == Some(false));
    Ok(keys)
}

fn cannot_read(error: std::io::Error) -> Error {
    Error::system("cannot read the host's mount table").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_the_table_lacks_are_missing() {
        let table = mountinfo::read().unwrap();
        let present = table.iter().find(|entry| entry.target == Path::new("/"));
        let present = present.unwrap();
        let key = |id: u64, path: &Path| MountKey {
            id,
            unique: 0,
            name: hash(path),
        };
        let (is, not) = (key(present.id, &present.target), u64::from(u32::MAX));
        let moved = key(present.id, Path::new("/no/such/target"));
        let gone = key(not, &present.target);
        assert_eq!(
            missing_in_table(vec![gone, is, moved]).unwrap(),
            [moved, gone]
        );
    }
}
