//! What `spc serve` remembers of the ledger: a few bytes for each record, so that only what changes has to be read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Result;
use crate::state::changes::Changes;
use crate::state::presence::{self, Mark};
use crate::state::record::{Record, State};
use crate::state::store::Corrupt;
use crate::state::{Route, Session};

/// How many requests are remembered of mounts that are gone: the shim of a daemon may report after its record is.
const FORGOTTEN: usize = 256;

/// How much room is made for records at once.
const ROOM: usize = 256;

/// What is remembered of one record.
struct One {
    mark: Mark,
    standing: Standing,
    /// Its id and its request, of one that the shim may report about.
    told: Option<Box<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is mounted, as far as the record goes.
    Mounted,
    /// A command is at work on it, or died at work; or it is of an earlier life of the machine.
    Open,
    /// It cannot be read.
    Bad,
}

/// The records that there are.
pub struct Known {
    changes: Changes,
    /// By name.
    ones: Vec<One>,
    forgotten: VecDeque<Box<str>>,
    /// Mounts that were made since the last time this was asked.
    made: Vec<(u64, u64)>,
}

impl AsFd for Known {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

impl Known {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// The ledger cannot be watched.
    pub fn begin(session: &Session) -> Result<Self> {
        Ok(Self {
            changes: Changes::begin(&session.ledger)?,
            ones: Vec::new(),
            forgotten: VecDeque::new(),
            made: Vec::new(),
        })
    }

    /// Reads what has changed, and tells of each such record, by its name, what it is now: none if it is gone.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn read(
        &mut self,
        session: &Session,
        mut tell: impl FnMut(u64, Option<&Record>),
    ) -> Result<()> {
        let (mut changed, all) = self.changes.take(&session.ledger)?;
        // What could not be read for want of memory may be read now.
        let again = |one: &&One| all || one.standing == Standing::Bad;
        changed.extend(self.ones.iter().filter(again).map(|one| one.mark.name));
        changed.sort_unstable();
        changed.dedup();
        let read = session.ledger.read(&changed, |name, read| {
            let record = self.learn(name, read);
            tell(name, record.as_ref());
        });
        if read.is_err() {
            self.changes.miss();
        }
        read
    }

    fn learn(
        &mut self,
        name: u64,
        read: std::result::Result<Option<Record>, Corrupt>,
    ) -> Option<Record> {
        let at = self.ones.binary_search_by_key(&name, |one| one.mark.name);
        let before = at.ok().and_then(|at| self.ones.get(at));
        let (record, one) = match read {
            Ok(None) => (None, None),
            Ok(Some(record)) => {
                let one = One::of(name, &record);
                let is_known =
                    |before: &One| before.standing == Standing::Mounted && before.mark == one.mark;
                if one.standing == Standing::Mounted && !before.is_some_and(is_known) {
                    self.made.push((record.mount_id, record.unique_id));
                }
                (Some(record), Some(one))
            }
            Err(corrupt) => {
                if before.is_none_or(|before| before.standing != Standing::Bad) {
                    tracing::warn!(file = %corrupt.file.display(), cause = %corrupt.cause, "a record cannot be read");
                }
                (None, Some(One::bad(name)))
            }
        };
        let told = match (at, one) {
            (Ok(at), Some(one)) => std::mem::replace(&mut self.ones[at], one).told,
            (Ok(at), None) => self.ones.remove(at).told,
            (Err(_), None) => None,
            (Err(at), Some(one)) => {
                if self.ones.len() == self.ones.capacity() {
                    self.ones.reserve_exact(ROOM);
                }
                self.ones.insert(at, one);
                None
            }
        };
        if record.is_none()
            && let Some(told) = told
        {
            self.forgotten.truncate(FORGOTTEN - 1);
            self.forgotten.push_front(told);
        }
        record
    }

    /// The request of the mount with this id, which may have gone not long ago.
    pub fn request(&self, id: &str) -> Option<&str> {
        let known = self.ones.iter().filter_map(|one| one.told.as_deref());
        let all = known.chain(self.forgotten.iter().map(|told| &**told));
        all.filter_map(|told| told.split_once(' '))
            .find_map(|(of, request)| (of == id).then_some(request))
    }

    /// Mounts that were made since the last time, by their ids: as in mountinfo, and the one that is never used again.
    pub fn made(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.made)
    }

    /// The names of records that are to be seen to: a command was at work on them, or the host has their mount no more.
    ///
    /// # Errors
    /// The host's mounts cannot be listed.
    pub fn open(&self, session: &Session) -> Result<Vec<u64>> {
        let mounted = self.in_standing(Standing::Mounted);
        let missing = presence::missing(session, mounted.map(|one| one.mark))?;
        let open = self.in_standing(Standing::Open).map(|one| one.mark.name);
        Ok(missing.iter().map(|mark| mark.name).chain(open).collect())
    }

    /// The names of records that a command has begun to write.
    pub fn begun(&self) -> Vec<u64> {
        self.changes.begun()
    }

    /// The names of records that cannot be read.
    pub fn bad(&self) -> Vec<u64> {
        self.in_standing(Standing::Bad)
            .map(|one| one.mark.name)
            .collect()
    }

    fn in_standing(&self, standing: Standing) -> impl Iterator<Item = &One> {
        self.ones.iter().filter(move |one| one.standing == standing)
    }
}

impl One {
    fn of(name: u64, record: &Record) -> Self {
        let repairing = record.again.as_ref().is_some_and(|a| a.making.is_some());
        let settled = record.state == State::Mounted && !repairing;
        let told = record.route != Route::Direct;
        let told = told.then(|| format!("{} {}", record.id, record.request_id).into_boxed_str());
        let mark = Mark::of(record).filter(|_| settled);
        Self {
            standing: match mark {
                Some(_) => Standing::Mounted,
                None => Standing::Open,
            },
            mark: Mark {
                name,
                ..mark.unwrap_or(Mark::none(name))
            },
            told,
        }
    }

    fn bad(name: u64) -> Self {
        Self {
            mark: Mark::none(name),
            standing: Standing::Bad,
            told: None,
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

    fn known() -> Known {
        Known {
            changes: Changes::none(),
            ones: Vec::new(),
            forgotten: VecDeque::new(),
            made: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_a_few_bytes() {
        assert_eq!(size_of::<One>(), 48);
        assert!(One::of(1, &record("a", "direct", "mounted")).told.is_none());
    }

    #[test]
    fn a_request_is_known_a_while_longer_than_its_mount() {
        let mut known = known();
        for name in [3, 1, 2] {
            let made = record(&format!("id{name}"), "preload", "mounting");
            known.learn(name, Ok(Some(made)));
        }
        assert!(known.ones.is_sorted_by_key(|one| one.mark.name));
        assert_eq!(known.request("id2"), Some("pod-1"));
        known.learn(2, Ok(None));
        assert_eq!(known.ones.len(), 2);
        assert_eq!(
            (known.request("id2"), known.request("id")),
            (Some("pod-1"), None)
        );
        for name in 10..=10 + FORGOTTEN as u64 {
            known.learn(name, Ok(Some(record("other", "graft", "mounted"))));
            known.learn(name, Ok(None));
        }
        assert_eq!(
            (known.request("id2"), known.forgotten.len()),
            (None, FORGOTTEN)
        );
    }

    #[test]
    fn a_mount_is_made_once() {
        let mut known = known();
        known.learn(1, Ok(Some(record("a", "direct", "mounting"))));
        assert!(known.made().is_empty());
        known.learn(1, Ok(Some(record("a", "direct", "mounted"))));
        assert_eq!(known.made(), [(5, 500)]);
        known.learn(1, Ok(Some(record("a", "direct", "mounted"))));
        assert!(known.made().is_empty());
        let bad = Corrupt {
            file: "/x".into(),
            cause: "no JSON".into(),
            shortage: false,
        };
        known.learn(1, Err(bad));
        assert_eq!((known.bad(), known.ones.len()), (vec![1], 1));
    }
}
