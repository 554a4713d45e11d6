//! `spc serve`'s watch over the daemons of mounts: when one ends, `spc repair` is run for its mount, again and again if
//! need be, later each time, and not for ever.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fs::inotify;

use super::pace::{LONGEST, PAUSE, backoff, how};
use crate::error::{Error, Result, errno_text};
use crate::host::process;
use crate::log;
use crate::mount::Options;
use crate::mount::extent::Extent;
use crate::mount::ledger::{DIR, Record, State};
use crate::mount::mounter::Session;
use crate::mount::repair::NOTHING;
use crate::sys;

/// How often to look at a mount whose daemon cannot be watched.
const LOOK: Duration = Duration::from_secs(1);

/// The least between two such looks, whatever the number of mounts.
const SHARE: Duration = Duration::from_millis(50);

/// How many looks and repairs are made at once.
const AT_ONCE: usize = 8;

/// How often a mount is repaired, or tried to, with no calm between.
const LIMIT: u32 = 10;

/// A mount that lived for so long has a new start.
const CALM: Duration = Duration::from_secs(600);

/// The ledger's number among the events; daemons have others.
const LEDGER: u64 = 0;

/// One mount that has a daemon.
struct Watched {
    id: String,
    request: String,
    daemons: BTreeMap<u64, OwnedFd>,
    /// When to look at it and perhaps repair it; none if its daemon tells.
    next: Option<Instant>,
    /// Repairs, and tries that failed, with no calm between.
    tries: u32,
    repaired: Option<Instant>,
    /// The process that ended last.
    ended: Option<OwnedFd>,
    running: Option<i32>,
}

/// All mounts with a daemon.
pub struct Repairs {
    events: OwnedFd,
    ledger: OwnedFd,
    watched: BTreeMap<String, Watched>,
    /// When to read the ledger, which has changed.
    read: Option<Instant>,
    number: u64,
}

impl AsFd for Repairs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Repairs {
    /// Begins to watch the ledger.
    ///
    /// # Errors
    /// The kernel refuses the means, or the ledger's directory cannot be made.
    pub fn begin(session: &Session) -> Result<Self> {
        let fail = |e: std::io::Error| {
            Error::system(format!("cannot watch {DIR} on the host")).because(errno_text(e))
        };
        let watch = || -> std::io::Result<OwnedFd> {
            let mut directory = std::fs::DirBuilder::new();
            directory.recursive(true).mode(0o700).create(DIR)?;
            let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
            let ledger = inotify::init(flags)?;
            let changes = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE;
            inotify::add_watch(&ledger, DIR, changes)?;
            Ok(ledger)
        };
        let ledger = session.host.run("watching the ledger", watch)?;
        let ledger = ledger.map_err(fail)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        let data = epoll::EventData::new_u64(LEDGER);
        epoll::add(&events, &ledger, data, epoll::EventFlags::IN).map_err(|e| fail(e.into()))?;
        Ok(Self {
            events,
            ledger,
            watched: BTreeMap::new(),
            read: Some(Instant::now()),
            number: LEDGER,
        })
    }

    /// When there is something to do, if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        let free = self.running() < AT_ONCE;
        let idle = self
            .watched
            .values()
            .filter(|w| free && w.running.is_none());
        idle.filter_map(|watched| watched.next)
            .chain(self.read)
            .min()
    }

    fn running(&self) -> usize {
        self.watched
            .values()
            .filter(|w| w.running.is_some())
            .count()
    }

    /// Heeds what happened, and does what is due.
    pub fn turn(&mut self, session: &Session) {
        for number in self.happened() {
            if number == LEDGER {
                self.drain();
                // Records come in crowds, and daemons with them.
                self.read.get_or_insert(Instant::now() + PAUSE);
            } else {
                self.ended(number);
            }
        }
        if self.read.is_some_and(|at| at <= Instant::now()) {
            self.read = None;
            match session.ledger.all() {
                Ok((records, _)) => self.update(&records),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        self.start_due();
    }

    fn happened(&self) -> Vec<u64> {
        let mut events = [MaybeUninit::uninit(); 64];
        let now = Timespec::default();
        match epoll::wait(&self.events, &mut events, Some(&now)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.ledger, &mut buffer);
        while reader.next().is_ok() {}
    }

    /// A process of some mount's daemon has ended.
    fn ended(&mut self, number: u64) {
        for (target, watched) in &mut self.watched {
            let Some(pidfd) = watched.daemons.remove(&number) else {
                continue;
            };
            // It is closed with the set's reference, unless a child of ours has another for a moment.
            let _ = epoll::delete(&self.events, &pidfd);
            watched.ended = Some(pidfd);
            if watched.repaired.is_some_and(|at| at.elapsed() > CALM) {
                watched.tries = 0;
            }
            if watched.tries < LIMIT {
                watched.next = Some(Instant::now() + backoff(watched.tries));
            } else {
                give_up(target, watched.tries);
            }
        }
    }

    /// The ledger changed.
    fn update(&mut self, records: &[Record]) {
        let lives = |record: &&Record| {
            let options = Options::parse([record.options.as_str()]);
            let extent = options.and_then(|options| Extent::of(&options));
            let wanted = extent.is_ok_and(|extent| extent != Extent::No);
            record.state == State::Mounted && record.again.is_some() && wanted
        };
        let known: BTreeMap<&str, &Record> = records
            .iter()
            .filter(lives)
            .map(|record| (record.target.as_str(), record))
            .collect();
        self.watched.retain(|target, watched| {
            watched.running.is_some() || known.contains_key(target.as_str())
        });
        let new: Vec<_> = known
            .into_iter()
            .filter(|(target, record)| self.watched.get(*target).is_none_or(|w| w.id != record.id))
            .collect();
        if new.is_empty() {
            return;
        }
        let mut daemons = match process::of_mounts() {
            Ok(daemons) => daemons,
            Err(error) => {
                let error = errno_text(error);
                tracing::warn!(error, "cannot look for daemons; they are looked for again");
                return;
            }
        };
        for (target, record) in new {
            let held = daemons.remove(&record.id).unwrap_or_default();
            let before = self.watched.remove(target);
            let watched = self.watch(record, held, before);
            self.watched.insert(target.to_owned(), watched);
        }
    }

    /// A mount is new, or has taken the place of another one.
    fn watch(&mut self, record: &Record, held: Vec<OwnedFd>, before: Option<Watched>) -> Watched {
        let mut daemons = BTreeMap::new();
        for pidfd in held {
            self.number += 1;
            let data = epoll::EventData::new_u64(self.number);
            if epoll::add(&self.events, &pidfd, data, epoll::EventFlags::IN).is_ok() {
                daemons.insert(self.number, pidfd);
            }
        }
        let repaired = record.again.as_ref().is_some_and(|again| again.repairs > 0);
        let before = before.filter(|_| repaired);
        Watched {
            id: record.id.clone(),
            request: record.request_id.clone(),
            // Its daemon died before we looked, or it hides.
            next: daemons.is_empty().then(|| Instant::now() + PAUSE),
            daemons,
            tries: before.as_ref().map_or(0, |before| before.tries),
            repaired: before.as_ref().and_then(|before| before.repaired),
            ended: None,
            running: before.and_then(|before| before.running),
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let mut free = AT_ONCE.saturating_sub(self.running());
        // Looks at daemons that cannot be watched cost a process each.
        for (target, watched) in &mut self.watched {
            if free == 0 {
                break;
            }
            if watched.running.is_some() || watched.next.is_none_or(|at| at > now) {
                continue;
            }
            // Until it has been waited for, the kernel does not tell.
            if let Some(ended) = watched.ended.take() {
                let reason = sys::wait_status(&ended).map_or("unknown".into(), how);
                tracing::warn!(target, reason, request = %watched.request, "a process of its daemon ended");
            }
            match start(target, &watched.request) {
                Ok(pid) => {
                    watched.running = Some(pid);
                    free -= 1;
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    watched.next = Some(now + LONGEST);
                }
            }
        }
    }

    /// A child of ours has ended, perhaps one of these. True if it has repaired a mount.
    pub fn reaped(&mut self, pid: i32, code: Option<i32>) -> bool {
        let hidden = self.watched.values().filter(|w| w.daemons.is_empty());
        let look = LOOK.max(SHARE * u32::try_from(hidden.count()).unwrap_or(u32::MAX));
        let mut all = self.watched.iter_mut();
        let Some((target, watched)) = all.find(|(_, watched)| watched.running == Some(pid)) else {
            return false;
        };
        let now = Instant::now();
        // What changed while it ran was put off.
        self.read.get_or_insert(now);
        watched.running = None;
        match code {
            Some(code) if code == i32::from(NOTHING) => {
                watched.next = watched.daemons.is_empty().then(|| now + look);
            }
            Some(0) => {
                watched.tries += 1;
                watched.repaired = Some(now);
                watched.next = None;
            }
            _ => {
                watched.tries += 1;
                if watched.tries < LIMIT {
                    let pause = backoff(watched.tries);
                    watched.next = Some(now + pause);
                    tracing::warn!(target, tries = watched.tries, again_in = ?pause, "not repaired");
                } else {
                    watched.next = None;
                    give_up(target, watched.tries);
                }
            }
        }
        code == Some(0)
    }
}

fn give_up(target: &str, tries: u32) {
    tracing::error!(
        target,
        tries,
        "not repaired any more; hint: see what ends its daemon, then unmount and mount it anew"
    );
}

fn start(target: &str, request: &str) -> Result<i32> {
    let child = Command::new("/proc/self/exe")
        .args(["repair", "--"])
        .arg(Path::new(target))
        .env(log::VARIABLE, request)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| Error::system("cannot start a repair").because(errno_text(e)))?;
    // It is reaped with all the others.
    Ok(child.id().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(repairs: u32) -> Record {
        serde_json::from_value(serde_json::json!({
            "id": "1a", "state": "mounted", "target": "/mnt", "written": "/mnt", "fs_type": "fuse.x", "source": "x",
            "shows": [], "shows_source": null, "options": "", "request": "", "route": "graft", "mount_id": 1,
            "unique_id": 1, "on": 1, "daemon": [], "since": 0, "again": {"secrets": [], "repairs": repairs},
        }))
        .unwrap()
    }

    fn repairs() -> Repairs {
        Repairs {
            events: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            ledger: inotify::init(inotify::CreateFlags::CLOEXEC).unwrap(),
            watched: BTreeMap::new(),
            read: None,
            number: LEDGER,
        }
    }

    /// A child of this number ends with this code.
    fn ends(repairs: &mut Repairs, code: i32) {
        repairs.watched.get_mut("/mnt").unwrap().running = Some(7);
        repairs.reaped(7, Some(code));
    }

    #[test]
    fn a_mount_that_is_never_repaired_is_given_up() {
        let mut repairs = repairs();
        repairs.update(&[record(0)]);
        for tries in 1..LIMIT {
            ends(&mut repairs, 32);
            assert!(repairs.watched["/mnt"].next.is_some(), "after {tries}");
        }
        ends(&mut repairs, 32);
        assert_eq!(repairs.watched["/mnt"].next, None);
        // Mounted anew, it has a new start.
        let again = Record {
            id: "2b".into(),
            ..record(0)
        };
        repairs.update(&[again]);
        assert_eq!(repairs.watched["/mnt"].tries, 0);
        assert!(repairs.watched["/mnt"].next.is_some());
    }

    #[test]
    fn one_that_dies_again_and_again_is_given_up_as_well() {
        let mut repairs = repairs();
        repairs.update(&[record(0)]);
        for number in 1..=LIMIT {
            ends(&mut repairs, 0);
            let next = Record {
                id: format!("{number}"),
                ..record(number)
            };
            repairs.update(&[next]);
        }
        assert_eq!(repairs.watched["/mnt"].tries, LIMIT);
        let daemon = some_process();
        repairs.watched.get_mut("/mnt").unwrap().daemons = BTreeMap::from([(1, daemon)]);
        repairs.watched.get_mut("/mnt").unwrap().next = None;
        repairs.ended(1);
        assert_eq!(repairs.watched["/mnt"].next, None);
        // After a calm it is repaired again.
        let long_ago = Instant::now().checked_sub(CALM * 2);
        let watched = repairs.watched.get_mut("/mnt").unwrap();
        watched.repaired = long_ago;
        watched.daemons = BTreeMap::from([(2, some_process())]);
        repairs.ended(2);
        assert!(long_ago.is_none() || repairs.watched["/mnt"].next.is_some());
    }

    fn some_process() -> OwnedFd {
        let own = rustix::process::getpid();
        rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap()
    }
}
