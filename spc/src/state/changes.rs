//! Which records change, as the kernel tells it (inotify(7)): so nothing is read to find out.

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

/// What happens to the files.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);

/// What happens to the ledger from when this was made. It can be polled.
pub struct Changes {
    inotify: Arc<OwnedFd>,
    /// Whether the directory is watched; it may go, and come again.
    watched: bool,
    /// Whether something happened that nobody told of.
    missed: bool,
    /// Records that were begun and have not been finished.
    begun: BTreeSet<u64>,
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Changes {
    /// As it is after the first look at an empty ledger that nobody writes to.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Self {
            inotify: Arc::new(inotify::init(flags).unwrap()),
            watched: true,
            missed: false,
            begun: BTreeSet::new(),
        }
    }

    /// Begins to watch; the directory is made if need be.
    ///
    /// # Errors
    /// The kernel refuses the means, or the directory cannot be made.
    pub fn begin(ledger: &Ledger) -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(|e| unwatched(e.into()))?;
        let make = || {
            let mut directory = fs::DirBuilder::new();
            directory.recursive(true).mode(0o700).create(DIR)
        };
        let made = ledger.host.run("watching the ledger", make)?;
        made.map_err(unwatched)?;
        Ok(Self {
            inotify: Arc::new(inotify),
            watched: false,
            missed: true,
            begun: BTreeSet::new(),
        })
    }

    /// The names of the records that were written or removed since the last time, or of all that are there, and true, if
    /// that cannot be told.
    ///
    /// # Errors
    /// The directory cannot be read; then all of them come the next time.
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
                Err(error) => return Err(unwatched(error.into())),
            };
        }
        let begun = ledger.files(DIR, "new")?;
        self.begun = begun.iter().filter_map(|file| name_of(file)).collect();
        let names = ledger.names()?;
        self.missed = !self.watched;
        Ok((names, true))
    }

    /// What was taken was not heeded.
    pub fn miss(&mut self) {
        self.missed = true;
    }

    /// Records that were begun and had not been finished when it was asked last what has changed.
    pub fn begun(&self) -> Vec<u64> {
        self.begun.iter().copied().collect()
    }

    fn drain(&mut self) -> Vec<u64> {
        let mut changed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let what = event.events();
            self.watched &= !what.contains(ReadFlags::IGNORED);
            self.missed |= what.intersects(ReadFlags::IGNORED | ReadFlags::QUEUE_OVERFLOW);
            let file = event.file_name().and_then(|name| name.to_str().ok());
            let file = Path::new(file.unwrap_or_default());
            let Some(name) = name_of(file) else {
                continue;
            };
            let is_begun = file.extension().is_some_and(|e| e == "new");
            if is_begun && what.contains(ReadFlags::CREATE) {
                self.begun.insert(name);
            } else {
                // A record is finished when it takes the name of the whole one.
                if is_begun || what.contains(ReadFlags::MOVED_TO) {
                    self.begun.remove(&name);
                }
                changed.push(name);
            }
        }
        changed
    }
}

fn unwatched(error: std::io::Error) -> Error {
    Error::system(format!("cannot watch {DIR} on the host")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_files_is_known_by_their_names() {
        let mut changes = Changes::none();
        let directory = std::env::temp_dir().join(format!("spc-changes-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        inotify::add_watch(&*changes.inotify, &directory, EVENTS).unwrap();
        let at = |name: &str| directory.join(name);
        for name in ["00000000000000a1.new", "00000000000000a2.new", "lock"] {
            fs::write(at(name), "x").unwrap();
        }
        assert!(changes.drain().is_empty());
        assert_eq!(changes.begun(), [0xa1, 0xa2]);
        fs::rename(at("00000000000000a1.new"), at("00000000000000a1.json")).unwrap();
        assert_eq!(changes.drain(), [0xa1]);
        assert_eq!(changes.begun(), [0xa2]);
        fs::remove_file(at("00000000000000a2.new")).unwrap();
        fs::remove_file(at("00000000000000a1.json")).unwrap();
        assert_eq!(changes.drain(), [0xa2, 0xa1]);
        assert!(changes.begun().is_empty() && !changes.missed);
        // It may go, and come again.
        fs::remove_dir_all(&directory).unwrap();
        changes.drain();
        assert!(changes.missed && !changes.watched);
    }
}
