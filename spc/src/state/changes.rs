//! Watches the ledger with inotify(7), so that only changed records are read.

use std::collections::BTreeSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::state::store::{DIR, Ledger, name_of};

/// Events that are watched in the directory of the records.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);

/// Queue of changes to the ledger since its creation. The file descriptor can be polled.
pub struct Changes {
    inotify: Arc<OwnedFd>,
    /// Whether the directory is watched. The directory may be removed and created again.
    watched: bool,
    /// Whether changes may have been lost, so that the next call has to list all records.
    missed: bool,
    /// Names of records whose temporary file exists: their writer has not renamed it yet.
    unfinished: BTreeSet<u64>,
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Changes {
    /// Returns the state after the first [`take`](Self::take) on an empty, idle ledger.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Self {
            inotify: Arc::new(inotify::init(flags).unwrap()),
            watched: true,
            missed: false,
            unfinished: BTreeSet::new(),
        }
    }

    /// Starts watching. Creates the directory if it is missing.
    ///
    /// # Errors
    /// Fails if inotify is not available or the directory cannot be created.
    pub fn begin(ledger: &Ledger) -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(|e| cannot_watch(e.into()))?;
        let create = || {
            let mut directory = fs::DirBuilder::new();
            directory.recursive(true).mode(0o700).create(DIR)
        };
        let created = ledger.host.run("watching the ledger", create)?;
        created.map_err(cannot_watch)?;
        Ok(Self {
            inotify: Arc::new(inotify),
            watched: false,
            missed: true,
            unfinished: BTreeSet::new(),
        })
    }

    /// Returns the names of the records that were written or removed since the last call, and
    /// false. Returns the names of all records and true if changes may have been lost.
    ///
    /// # Errors
    /// Fails if the directory cannot be read; the next call then lists all records.
    pub fn take(&mut self, ledger: &Ledger) -> Result<(Vec<u64>, bool)> {
        let changed = self.drain();
        if !self.missed {
            return Ok((changed, false));
        }
        if !self.watched {
            let inotify = Arc::clone(&self.inotify);
            let watch = move || inotify::add_watch(&*inotify, DIR, EVENTS);
            self.watched = match ledger.host.run("watching the ledger", watch)? {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(error) => return Err(cannot_watch(error.into())),
            };
        }
        let unfinished = ledger.files(DIR, "new")?;
        self.unfinished = unfinished.iter().filter_map(|file| name_of(file)).collect();
        let names = ledger.names()?;
        self.missed = !self.watched;
        Ok((names, true))
    }

    /// Makes the next [`take`](Self::take) list all records, because the last result was not used.
    pub fn mark_missed(&mut self) {
        self.missed = true;
    }

    /// Returns the names of records that were unfinished at the last [`take`](Self::take).
    pub fn unfinished(&self) -> Vec<u64> {
        self.unfinished.iter().copied().collect()
    }

    fn drain(&mut self) -> Vec<u64> {
        let mut changed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            self.watched &= !flags.contains(ReadFlags::IGNORED);
            self.missed |= flags.intersects(ReadFlags::IGNORED | ReadFlags::QUEUE_OVERFLOW);
            let file = event.file_name().and_then(|name| name.to_str().ok());
            let file = Path::new(file.unwrap_or_default());
            let Some(name) = name_of(file) else {
                continue;
            };
            let is_temporary = file.extension().is_some_and(|e| e == "new");
            if is_temporary && flags.contains(ReadFlags::CREATE) {
                self.unfinished.insert(name);
            } else {
                // The rename to the final name finishes a record.
                if is_temporary || flags.contains(ReadFlags::MOVED_TO) {
                    self.unfinished.remove(&name);
                }
                changed.push(name);
            }
        }
        changed
    }
}

fn cannot_watch(error: std::io::Error) -> Error {
    Error::system(format!("cannot watch {DIR} on the host")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_tell_changed_and_unfinished_records() {
        let mut changes = Changes::none();
        let directory = std::env::temp_dir().join(format!("spc-changes-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        inotify::add_watch(&*changes.inotify, &directory, EVENTS).unwrap();
        let path = |name: &str| directory.join(name);
        for name in ["00000000000000a1.new", "00000000000000a2.new", "lock"] {
            fs::write(path(name), "x").unwrap();
        }
        assert!(changes.drain().is_empty());
        assert_eq!(changes.unfinished(), [0xa1, 0xa2]);
        fs::rename(path("00000000000000a1.new"), path("00000000000000a1.json")).unwrap();
        assert_eq!(changes.drain(), [0xa1]);
        assert_eq!(changes.unfinished(), [0xa2]);
        fs::remove_file(path("00000000000000a2.new")).unwrap();
        fs::remove_file(path("00000000000000a1.json")).unwrap();
        assert_eq!(changes.drain(), [0xa2, 0xa1]);
        assert!(changes.unfinished().is_empty() && !changes.missed);
        fs::remove_dir_all(&directory).unwrap();
        changes.drain();
        assert!(changes.missed && !changes.watched);
    }
}
