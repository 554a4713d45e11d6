//! Cache of the ledger in `spc serve`. The cache has a few bytes for each record, so that only
//! changed records have to be read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Result;
use crate::state::changes::Changes;
use crate::state::presence::{self, MountKey};
use crate::state::record::{Record, State};
use crate::state::store::Corrupt;
use crate::state::{Route, Session};

/// Number of removed records whose request id is kept. The shim in a daemon may report after the
/// record is removed.
const MAX_REMOVED: usize = 256;

/// Number of records by which the cache grows.
const GROWTH: usize = 256;

/// Cached part of one record.
struct CachedRecord {
    key: MountKey,
    status: Status,
    /// `ID REQUEST` of the record, if the shim may report about the mount.
    request: Option<Box<str>>,
}

/// State of a mount according to its record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    /// The record says that the mount is complete.
    Mounted,
    /// A command is changing the mount or died while it did, or the record is from before a reboot.
    Open,
    /// The record cannot be read.
    Unreadable,
}

/// Cache of all records of the ledger.
pub struct RecordCache {
    changes: Changes,
    /// Sorted by the name of the record.
    records: Vec<CachedRecord>,
    /// `ID REQUEST` of removed records, latest first.
    removed: VecDeque<Box<str>>,
    /// Mounts that became complete since the last call of [`RecordCache::take_new_mounts`].
    new_mounts: Vec<(u64, u64)>,
}

impl AsFd for RecordCache {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

impl RecordCache {
    /// Creates an empty cache and begins to watch the ledger.
    ///
    /// # Errors
    /// The ledger cannot be watched.
    pub fn new(session: &Session) -> Result<Self> {
        Ok(Self {
            changes: Changes::begin(&session.ledger)?,
            records: Vec::new(),
            removed: VecDeque::new(),
            new_mounts: Vec::new(),
        })
    }

    /// Reads the changed records, and calls `changed` with the name of each and its new contents,
    /// or `None` if it was removed or cannot be read.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn read(
        &mut self,
        session: &Session,
        mut changed: impl FnMut(u64, Option<&Record>),
    ) -> Result<()> {
        let (mut names, all) = self.changes.take(&session.ledger)?;
        // A record may have been unreadable only because memory was short.
        let reread = |cached: &&CachedRecord| all || cached.status == Status::Unreadable;
        let cached = self.records.iter().filter(reread);
        names.extend(cached.map(|cached| cached.key.name));
        names.sort_unstable();
        names.dedup();
        let read = session.ledger.read(&names, |name, read| {
            let record = self.update(name, read);
            changed(name, record.as_ref());
        });
        if read.is_err() {
            self.changes.mark_missed();
        }
        read
    }

    /// Stores a record that was read. Returns the record, if there is one that can be read.
    fn update(
        &mut self,
        name: u64,
        read: std::result::Result<Option<Record>, Corrupt>,
    ) -> Option<Record> {
        let position = self
            .records
            .binary_search_by_key(&name, |cached| cached.key.name);
        let before = position.ok().and_then(|index| self.records.get(index));
        let (record, cached) = match read {
            Ok(None) => (None, None),
            Ok(Some(record)) => {
                let cached = CachedRecord::new(name, &record);
                let is_same_mount = |before: &CachedRecord| {
                    before.status == Status::Mounted && before.key == cached.key
                };
                if cached.status == Status::Mounted && !before.is_some_and(is_same_mount) {
                    self.new_mounts.push((record.mount_id, record.unique_id));
                }
                (Some(record), Some(cached))
            }
            Err(corrupt) => {
                if before.is_none_or(|before| before.status != Status::Unreadable) {
                    tracing::warn!(file = %corrupt.file.display(), cause = %corrupt.cause, "cannot read a record");
                }
                (None, Some(CachedRecord::unreadable(name)))
            }
        };
        let request = match (position, cached) {
            (Ok(index), Some(cached)) => {
                std::mem::replace(&mut self.records[index], cached).request
            }
            (Ok(index), None) => self.records.remove(index).request,
            (Err(_), None) => None,
            (Err(index), Some(cached)) => {
                // Growing by a fixed number wastes less memory than doubling.
                if self.records.len() == self.records.capacity() {
                    self.records.reserve_exact(GROWTH);
                }
                self.records.insert(index, cached);
                None
            }
        };
        if record.is_none()
            && let Some(request) = request
        {
            self.removed.truncate(MAX_REMOVED - 1);
            self.removed.push_front(request);
        }
        record
    }

    /// Returns the request id of the record with this id, also if it was removed recently.
    pub fn request(&self, id: &str) -> Option<&str> {
        let current = self.records.iter().filter_map(|r| r.request.as_deref());
        let all = current.chain(self.removed.iter().map(|request| &**request));
        all.filter_map(|text| text.split_once(' '))
            .find_map(|(record_id, request)| (record_id == id).then_some(request))
    }

    /// Returns the mounts that became complete since the last call: the id in mountinfo and the
    /// unique id of each.
    pub fn take_new_mounts(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.new_mounts)
    }

    /// Returns the names of records to reconcile: those that are open, and those whose mount the
    /// host no longer has.
    ///
    /// # Errors
    /// The host's mounts cannot be listed.
    pub fn to_reconcile(&self, session: &Session) -> Result<Vec<u64>> {
        let mounted = self.with_status(Status::Mounted);
        let missing = presence::missing(session, mounted.map(|cached| cached.key))?;
        let open = self.with_status(Status::Open);
        let open = open.map(|cached| cached.key.name);
        Ok(missing.iter().map(|key| key.name).chain(open).collect())
    }

    /// Returns the names of records that a command began to write and did not finish.
    pub fn unfinished(&self) -> Vec<u64> {
        self.changes.unfinished()
    }

    /// Returns the names of records that cannot be read.
    pub fn unreadable(&self) -> Vec<u64> {
        self.with_status(Status::Unreadable)
            .map(|cached| cached.key.name)
            .collect()
    }

    fn with_status(&self, status: Status) -> impl Iterator<Item = &CachedRecord> {
        self.records
            .iter()
            .filter(move |cached| cached.status == status)
    }
}

impl CachedRecord {
    fn new(name: u64, record: &Record) -> Self {
        let repairing = record
            .repair
            .as_ref()
            .is_some_and(|repair| repair.pending_id.is_some());
        let complete = record.state == State::Mounted && !repairing;
        // No shim runs for a direct mount.
        let has_shim = record.route != Route::Direct;
        let request =
            has_shim.then(|| format!("{} {}", record.id, record.request_id).into_boxed_str());
        let key = MountKey::from_record(record).filter(|_| complete);
        Self {
            status: match key {
                Some(_) => Status::Mounted,
                None => Status::Open,
            },
            key: MountKey {
                name,
                ..key.unwrap_or(MountKey::none(name))
            },
            request,
        }
    }

    fn unreadable(name: u64) -> Self {
        Self {
            key: MountKey::none(name),
            status: Status::Unreadable,
            request: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, route: &str, state: &str) -> Record {
        serde_json::from_value(serde_json::json!({
            "id": id, "state": state, "target": "/mnt", "written": "/mnt", "fs_type": "nfs", "source": "x", "shows": [],
            "shows_source": null, "options": "", "request": "", "route": route, "mount_id": 5, "unique_id": 500, "on": 1,
            "daemon": [], "since": 0, "request_id": "pod-1",
        }))
        .unwrap()
    }

    fn empty_cache() -> RecordCache {
        RecordCache {
            changes: Changes::none(),
            records: Vec::new(),
            removed: VecDeque::new(),
            new_mounts: Vec::new(),
        }
    }

    #[test]
    fn a_cached_record_takes_48_bytes() {
        assert_eq!(size_of::<CachedRecord>(), 48);
        assert!(
            CachedRecord::new(1, &record("a", "direct", "mounted"))
                .request
                .is_none()
        );
    }

    #[test]
    fn the_request_of_a_removed_record_is_kept_until_256_more_are_removed() {
        let mut cache = empty_cache();
        for name in [3, 1, 2] {
            let made = record(&format!("id{name}"), "preload", "mounting");
            cache.update(name, Ok(Some(made)));
        }
        assert!(cache.records.is_sorted_by_key(|cached| cached.key.name));
        assert_eq!(cache.request("id2"), Some("pod-1"));
        cache.update(2, Ok(None));
        assert_eq!(cache.records.len(), 2);
        assert_eq!(
            (cache.request("id2"), cache.request("id")),
            (Some("pod-1"), None)
        );
        for name in 10..=10 + MAX_REMOVED as u64 {
            cache.update(name, Ok(Some(record("other", "graft", "mounted"))));
            cache.update(name, Ok(None));
        }
        assert_eq!(
            (cache.request("id2"), cache.removed.len()),
            (None, MAX_REMOVED)
        );
    }

    #[test]
    fn a_mount_is_reported_as_new_once() {
        let mut cache = empty_cache();
        cache.update(1, Ok(Some(record("a", "direct", "mounting"))));
        assert!(cache.take_new_mounts().is_empty());
        cache.update(1, Ok(Some(record("a", "direct", "mounted"))));
        assert_eq!(cache.take_new_mounts(), [(5, 500)]);
        cache.update(1, Ok(Some(record("a", "direct", "mounted"))));
        assert!(cache.take_new_mounts().is_empty());
        let corrupt = Corrupt {
            file: "/x".into(),
            cause: "no JSON".into(),
            shortage: false,
        };
        cache.update(1, Err(corrupt));
        assert_eq!((cache.unreadable(), cache.records.len()), (vec![1], 1));
    }
}
