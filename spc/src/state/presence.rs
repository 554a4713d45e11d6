//! Which recorded mounts the host still has.
//!
//! The kernel is asked for each mount, by number, or the mount table read where it cannot be. The path to a mount may lead
//! through another that does not answer, so it is walked only then.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::host::mountinfo::{self, Entry};
use crate::host::target::{MountId, mount_id};
use crate::state::store::hash;
use crate::state::{Record, Session};
use crate::sys::statmount;

/// What a record says of its mount, in few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountKey {
    /// Its id, as in mountinfo.
    pub id: u64,
    /// The one that is never used again; 0 where the kernel has none.
    pub unique: u64,
    /// The hash of its target, which is the record's name.
    pub name: u64,
}

impl MountKey {
    /// None if the record is of an earlier life of the machine, whose mounts are all gone.
    pub fn from_record(record: &Record) -> Option<Self> {
        record.is_of_this_boot().then(|| Self {
            id: record.mount_id,
            unique: record.unique_id,
            name: hash(Path::new(&record.target)),
        })
    }

    /// That of a record which says nothing of its mount.
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

    /// The entry with its plain id, if that has not been given to another mount since.
    fn confirm(self, entry: Entry) -> std::io::Result<Option<Entry>> {
        match self.unique {
            0 => return Ok(self.is_at(&entry.target).then_some(entry)),
            unique if entry.unique == unique => return Ok(Some(entry)),
            _ => {}
        }
        match statmount::plain_id(self.unique) {
            Ok(id) => Ok((id == entry.id).then_some(entry)),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
            // A filter of system calls that is older than the kernel.
            Err(_) => self.walk(entry),
        }
    }

    /// The entry, if the mount where it is now is the one that is wanted: directories on the way may have been renamed.
    fn walk(self, mut entry: Entry) -> std::io::Result<Option<Entry>> {
        for _ in 0..mountinfo::LOOKS {
            match top(&entry.target) {
                Ok(top) if top.id == self.id => {
                    return Ok((top.unique == self.unique).then_some(entry));
                }
                // Covered by another mount; the path tells as much as can be told.
                _ if self.is_at(&entry.target) => return Ok(Some(entry)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            match mountinfo::find(self.id, self.unique)? {
                Some(now) => entry = now,
                None => return Ok(None),
            }
        }
        // Renamed all the time, so it is there.
        Ok(Some(entry))
    }
}

/// The topmost mount at a path, by name in its directory.
fn top(path: &Path) -> std::result::Result<MountId, Errno> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let parent = open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount_id(&parent, path.file_name().unwrap_or_default())
}

/// The host's entry of a recorded mount, if that mount still exists.
///
/// # Errors
/// The mount table cannot be read.
pub fn entry_of(session: &Session, record: &Record) -> Result<Option<Entry>> {
    let Some(wanted) = MountKey::from_record(record) else {
        return Ok(None);
    };
    let look = move || match mountinfo::find(wanted.id, wanted.unique)? {
        Some(entry) => wanted.confirm(entry),
        None => Ok(None),
    };
    session
        .host
        .run("looking at a mount", look)?
        .map_err(unreadable)
}

/// As [`entry_of`], of many: where the kernel cannot be asked for each, the table is read once.
///
/// # Errors
/// The mount table cannot be read.
pub fn entries_of(session: &Session, records: &[Record]) -> Result<Vec<Option<Entry>>> {
    let all: Vec<Option<MountKey>> = records.iter().map(MountKey::from_record).collect();
    let look = move || -> std::io::Result<Vec<Option<Entry>>> {
        let mut table: Option<HashMap<u64, Entry>> = None;
        let confirm = |wanted: Option<MountKey>| {
            let Some(wanted) = wanted else {
                return Ok(None);
            };
            if table.is_none() {
                if let Some(answer) = mountinfo::ask(wanted.unique) {
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
        .run("looking at the mounts", look)?
        .map_err(unreadable)
}

/// Those of many recorded mounts that the host seems to have no more, from a list of what it has; which of them are really
/// gone, [`entry_of`] tells. Nothing is asked of any other one.
///
/// # Errors
/// The mount table cannot be read.
pub fn missing(session: &Session, marks: impl Iterator<Item = MountKey>) -> Result<Vec<MountKey>> {
    let list = || statmount::after(0).unwrap_or_default();
    let listed = session.host.run("listing the mounts", list)?;
    let (mut missing, mut unlisted) = (Vec::new(), Vec::new());
    for mark in marks {
        if mark.unique == 0 || listed.is_empty() {
            unlisted.push(mark);
        } else if listed.binary_search(&mark.unique).is_err() {
            missing.push(mark);
        }
    }
    if !unlisted.is_empty() {
        let search = move || missing_in_table(unlisted);
        let searched = session.host.run("looking at the mounts", search)?;
        missing.extend(searched.map_err(unreadable)?);
    }
    Ok(missing)
}

fn missing_in_table(mut marks: Vec<MountKey>) -> std::io::Result<Vec<MountKey>> {
    marks.sort_unstable_by_key(|mark| mark.id);
    let first = |id: u64| marks.partition_point(|mark| mark.id < id);
    let with = |id: u64| first(id)..first(id + 1);
    let mut there = vec![false; marks.len()];
    mountinfo::search(
        |id| !with(id).is_empty(),
        |entry| {
            for at in with(entry.id) {
                there[at] = marks[at].confirm(entry.clone())?.is_some();
            }
            Ok(false)
        },
    )?;
    let mut there = there.into_iter();
    marks.retain(|_| there.next() == Some(false));
    Ok(marks)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::system("cannot read the host's mount table").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_does_not_have_is_missing() {
        let table = mountinfo::read().unwrap();
        let there = table.iter().find(|entry| entry.target == Path::new("/"));
        let there = there.unwrap();
        let mark = |id: u64, path: &Path| MountKey {
            id,
            unique: 0,
            name: hash(path),
        };
        let (is, not) = (mark(there.id, &there.target), u64::from(u32::MAX));
        let moved = mark(there.id, Path::new("/no/such/target"));
        let gone = mark(not, &there.target);
        assert_eq!(
            missing_in_table(vec![gone, is, moved]).unwrap(),
            [moved, gone]
        );
    }
}
