//! `spc serve`'s watch over the daemons of mounts: when one ends, `spc repair` is run for its mount, again and again if
//! need be, later each time, and not for ever.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::daemon::backoff::{LONGEST, PAUSE, backoff, how};
use crate::error::{Error, Result, errno_text};
use crate::options::Options;
use crate::options::repair_scope::RepairScope;
use crate::process::marks;
use crate::repair::NOTHING;
use crate::state::record::{Record, State};
use crate::{log, sys};

/// How often to look at a mount whose daemon cannot be watched.
const LOOK: Duration = Duration::from_secs(1);

/// The least between two such looks, whatever the number of mounts.
const SHARE: Duration = Duration::from_millis(50);

/// How many looks and repairs are made at once.
const AT_ONCE: usize = 8;

/// How often a mount is repaired, or tried to, with no calm between.
const LIMIT: u32 = 10;

/// A mount that lived for so long has a new start.
const REPAIR_RESET: Duration = Duration::from_secs(600);

/// One mount that has a daemon.
struct Watched {
    target: String,
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
    /// Its record went while that ran.
    over: bool,
}

/// All mounts with a daemon, by the names of their records.
pub struct Repairs {
    events: OwnedFd,
    watched: BTreeMap<u64, Watched>,
    /// Those whose daemons were not looked for yet.
    new: Vec<u64>,
    number: u64,
}

impl AsFd for Repairs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Repairs {
    /// Nothing is watched yet.
    ///
    /// # Errors
    /// The kernel refuses the means.
    pub fn begin() -> Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| {
            Error::system("cannot watch the daemons of mounts").because(std::io::Error::from(e))
        })?;
        Ok(Self {
            events,
            watched: BTreeMap::new(),
            new: Vec::new(),
            number: 0,
        })
    }

    /// When there is something to do, if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        let free = self.running() < AT_ONCE;
        let idle = self
            .watched
            .values()
            .filter(|w| free && w.running.is_none());
        idle.filter_map(|watched| watched.next).min()
    }

    fn running(&self) -> usize {
        self.watched
            .values()
            .filter(|w| w.running.is_some())
            .count()
    }

    /// Heeds what happened, and does what is due.
    pub fn turn(&mut self) {
        for number in self.happened() {
            self.ended(number);
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

    /// A process of some mount's daemon has ended.
    fn ended(&mut self, number: u64) {
        for watched in self.watched.values_mut() {
            let Some(pidfd) = watched.daemons.remove(&number) else {
                continue;
            };
            // It is closed with the set's reference, unless a child of ours has another for a moment.
            let _ = epoll::delete(&self.events, &pidfd);
            watched.ended = Some(pidfd);
            if watched
                .repaired
                .is_some_and(|at| at.elapsed() > REPAIR_RESET)
            {
                watched.tries = 0;
            }
            if watched.tries < LIMIT {
                watched.next = Some(Instant::now() + backoff(watched.tries));
            } else {
                give_up(&watched.target, watched.tries);
            }
        }
    }

    /// A record was written, or is gone.
    pub fn heed(&mut self, name: u64, record: Option<&Record>) {
        let lives = |record: &&Record| {
            let options = Options::parse([record.options.as_str()]);
            let extent = options.and_then(|options| RepairScope::from_options(&options));
            let wanted = extent.is_ok_and(|extent| extent != RepairScope::No);
            record.state == State::Mounted && record.repair.is_some() && wanted
        };
        let before = self.watched.remove(&name);
        let watched = match (record.filter(lives), before) {
            (Some(record), Some(before)) if before.id == record.id => Watched {
                over: false,
                ..before
            },
            (Some(record), before) => {
                self.new.push(name);
                Watched::new(record, before)
            }
            (None, Some(before)) if before.running.is_some() => Watched {
                over: true,
                ..before
            },
            (None, _) => return,
        };
        self.watched.insert(name, watched);
    }

    /// Looks for the daemons of mounts that are new, or have taken the place of others.
    pub fn find(&mut self) {
        if self.new.is_empty() {
            return;
        }
        let mut daemons = match marks::of_mounts() {
            Ok(daemons) => daemons,
            Err(error) => {
                let error = errno_text(error);
                tracing::warn!(error, "cannot look for daemons; they are looked for again");
                return;
            }
        };
        for name in std::mem::take(&mut self.new) {
            let Some(watched) = self.watched.get_mut(&name) else {
                continue;
            };
            for pidfd in daemons.remove(&watched.id).unwrap_or_default() {
                self.number += 1;
                let data = epoll::EventData::new_u64(self.number);
                if epoll::add(&self.events, &pidfd, data, epoll::EventFlags::IN).is_ok() {
                    watched.daemons.insert(self.number, pidfd);
                }
            }
            // Its daemon died before we looked, or it hides.
            if watched.daemons.is_empty() {
                watched.next = Some(Instant::now() + PAUSE);
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let mut free = AT_ONCE.saturating_sub(self.running());
        // Looks at daemons that cannot be watched cost a process each.
        for watched in self.watched.values_mut() {
            let target = watched.target.as_str();
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
        let Some((name, watched)) = all.find(|(_, watched)| watched.running == Some(pid)) else {
            return false;
        };
        if watched.over {
            let name = *name;
            self.watched.remove(&name);
            return code == Some(0);
        }
        let (now, target) = (Instant::now(), watched.target.as_str());
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

impl Watched {
    /// A mount that is new, or has taken the place of another one.
    fn new(record: &Record, before: Option<Self>) -> Self {
        let repaired = record
            .repair
            .as_ref()
            .is_some_and(|again| again.repairs > 0);
        let before = before.filter(|_| repaired);
        Self {
            target: record.target.clone(),
            id: record.id.clone(),
            request: record.request_id.clone(),
            daemons: BTreeMap::new(),
            next: None,
            tries: before.as_ref().map_or(0, |before| before.tries),
            repaired: before.as_ref().and_then(|before| before.repaired),
            ended: None,
            running: before.and_then(|before| before.running),
            over: false,
        }
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
        .map_err(|e| Error::system("cannot start a repair").because(e))?;
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
            watched: BTreeMap::new(),
            new: Vec::new(),
            number: 0,
        }
    }

    /// The name of the record.
    const NAME: u64 = 1;

    fn update(repairs: &mut Repairs, record: &Record) {
        repairs.heed(NAME, Some(record));
        repairs.find();
    }

    /// A child of this number ends with this code.
    fn ends(repairs: &mut Repairs, code: i32) {
        repairs.watched.get_mut(&NAME).unwrap().running = Some(7);
        repairs.reaped(7, Some(code));
    }

    #[test]
    fn a_mount_that_is_never_repaired_is_given_up() {
        let mut repairs = repairs();
        update(&mut repairs, &record(0));
        for tries in 1..LIMIT {
            ends(&mut repairs, 32);
            assert!(repairs.watched[&NAME].next.is_some(), "after {tries}");
        }
        ends(&mut repairs, 32);
        assert_eq!(repairs.watched[&NAME].next, None);
        // Mounted anew, it has a new start.
        let again = Record {
            id: "2b".into(),
            ..record(0)
        };
        update(&mut repairs, &again);
        assert_eq!(repairs.watched[&NAME].tries, 0);
        assert!(repairs.watched[&NAME].next.is_some());
    }

    #[test]
    fn one_that_dies_again_and_again_is_given_up_as_well() {
        let mut repairs = repairs();
        update(&mut repairs, &record(0));
        for number in 1..=LIMIT {
            ends(&mut repairs, 0);
            let next = Record {
                id: format!("{number}"),
                ..record(number)
            };
            update(&mut repairs, &next);
        }
        assert_eq!(repairs.watched[&NAME].tries, LIMIT);
        let daemon = some_process();
        repairs.watched.get_mut(&NAME).unwrap().daemons = BTreeMap::from([(1, daemon)]);
        repairs.watched.get_mut(&NAME).unwrap().next = None;
        repairs.ended(1);
        assert_eq!(repairs.watched[&NAME].next, None);
        // After a calm it is repaired again.
        let long_ago = Instant::now().checked_sub(REPAIR_RESET * 2);
        let watched = repairs.watched.get_mut(&NAME).unwrap();
        watched.repaired = long_ago;
        watched.daemons = BTreeMap::from([(2, some_process())]);
        repairs.ended(2);
        assert!(long_ago.is_none() || repairs.watched[&NAME].next.is_some());
    }

    #[test]
    fn one_that_goes_while_it_is_repaired_goes_when_that_has_ended() {
        let mut repairs = repairs();
        update(&mut repairs, &record(0));
        repairs.watched.get_mut(&NAME).unwrap().running = Some(7);
        repairs.heed(NAME, None);
        assert_eq!(repairs.running(), 1);
        repairs.reaped(7, Some(32));
        assert!(repairs.watched.is_empty());
        update(&mut repairs, &record(0));
        repairs.heed(NAME, None);
        assert!(repairs.watched.is_empty());
    }

    fn some_process() -> OwnedFd {
        let own = rustix::process::getpid();
        rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap()
    }
}
