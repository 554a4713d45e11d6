//! Watches the daemons of mounts and schedules repairs.
//!
//! When a process of a daemon ends, `spc serve` runs `spc repair` for its mount. After a failure
//! the repair is retried with back-off, up to a limit.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::daemon::backoff::{FIRST_DELAY, MAX_DELAY, backoff, describe_status};
use crate::error::{Error, Result, errno_text};
use crate::options::Options;
use crate::options::repair_scope::RepairScope;
use crate::process::marks;
use crate::repair::NOTHING;
use crate::state::record::{Record, State};
use crate::{log, sys};

/// Interval of the checks of a mount whose daemon cannot be watched.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest time between two such checks, whatever the number of mounts.
const CHECK_SPACING: Duration = Duration::from_millis(50);

/// Number of checks and repairs that run at the same time.
const MAX_RUNNING: usize = 8;

/// Number of those that may be for volumes of pods, whose servers may be silent on purpose.
const MAX_OF_PODS: usize = 6;

/// Limit for the attempts at a mount. [`REPAIR_RESET`] resets the count.
const MAX_ATTEMPTS: u32 = 10;

/// Lifetime of a repaired mount after which its attempts are counted from 0 again.
const REPAIR_RESET: Duration = Duration::from_secs(600);

/// Mount with a daemon.
struct WatchedMount {
    target: String,
    id: String,
    request: String,
    /// Whether it is a volume that a pod's author described.
    of_pod: bool,
    /// pidfds of the daemon's processes, by the key of their epoll event.
    daemons: BTreeMap<u64, OwnedFd>,
    /// Time of the next `spc repair`. `None` while the end of a daemon process is awaited.
    next_repair: Option<Instant>,
    /// Repairs and failed attempts since the last [`REPAIR_RESET`].
    attempts: u32,
    repaired: Option<Instant>,
    /// pidfd of the daemon process that ended last.
    last_ended: Option<OwnedFd>,
    /// PID of the running `spc repair`.
    running: Option<i32>,
    /// Whether the record was removed while `spc repair` was running.
    record_removed: bool,
}

/// Watches all mounts with a daemon and runs their repairs.
pub struct RepairScheduler {
    /// epoll instance with the pidfds of all daemons.
    events: OwnedFd,
    /// Mounts by the name of their record.
    mounts: BTreeMap<u64, WatchedMount>,
    /// Names of records whose daemons have not been searched yet.
    new: Vec<u64>,
    /// Key of the last epoll event.
    last_key: u64,
}

impl AsFd for RepairScheduler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl RepairScheduler {
    /// Creates a scheduler without mounts.
    ///
    /// # Errors
    /// The epoll instance cannot be created.
    pub fn new() -> Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| {
            Error::system("cannot watch the daemons of mounts").because(std::io::Error::from(e))
        })?;
        Ok(Self {
            events,
            mounts: BTreeMap::new(),
            new: Vec::new(),
            last_key: 0,
        })
    }

    /// Returns the time of the next repair, if no daemon ends before.
    pub fn due(&self) -> Option<Instant> {
        let free = self.free_slots();
        let idle = self
            .mounts
            .values()
            .filter(|mount| free.has_one_for(mount) && mount.running.is_none());
        idle.filter_map(|mount| mount.next_repair).min()
    }

    /// Returns the targets of all watched mounts.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.mounts.values().map(|mount| mount.target.as_str())
    }

    /// Returns how many more `spc repair` processes may run.
    fn free_slots(&self) -> FreeSlots {
        let mut free = FreeSlots {
            all: MAX_RUNNING,
            of_pods: MAX_OF_PODS,
        };
        for mount in self.mounts.values().filter(|mount| mount.running.is_some()) {
            free.take_for(mount);
        }
        free
    }

    /// Handles the ends of daemon processes and starts the repairs that are due.
    pub fn run_due(&mut self) {
        for key in self.ended_daemons() {
            self.daemon_ended(key);
        }
        self.start_due();
    }

    /// Returns the keys of epoll events, without waiting.
    fn ended_daemons(&self) -> Vec<u64> {
        let mut events = [MaybeUninit::uninit(); 64];
        let no_wait = Timespec::default();
        match epoll::wait(&self.events, &mut events, Some(&no_wait)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Handles the end of a daemon process: schedules a repair, unless the attempts are exhausted.
    fn daemon_ended(&mut self, key: u64) {
        for mount in self.mounts.values_mut() {
            let Some(pidfd) = mount.daemons.remove(&key) else {
                continue;
            };
            // An explicit removal is needed: a child that is being started may still have a copy of
            // the descriptor, which keeps it in the epoll set (epoll(7)).
            let _ = epoll::delete(&self.events, &pidfd);
            mount.last_ended = Some(pidfd);
            if mount.repaired.is_some_and(|at| at.elapsed() > REPAIR_RESET) {
                mount.attempts = 0;
            }
            if mount.attempts < MAX_ATTEMPTS {
                mount.next_repair = Some(Instant::now() + backoff(mount.attempts));
            } else {
                log_giving_up(&mount.target, mount.attempts);
            }
        }
    }

    /// Handles a changed record. `None` means that the record was removed or cannot be read.
    ///
    /// Watches complete mounts whose daemon may be repaired (`x-spc.repair`).
    pub fn update_record(&mut self, name: u64, record: Option<&Record>) {
        let is_repairable = |record: &&Record| {
            let options = Options::parse([record.options.as_str()]);
            let scope = options.and_then(|options| RepairScope::from_options(&options));
            let wanted = scope.is_ok_and(|scope| scope != RepairScope::No);
            record.state == State::Mounted && record.repair.is_some() && wanted
        };
        let before = self.mounts.remove(&name);
        let mount = match (record.filter(is_repairable), before) {
            (Some(record), Some(before)) if before.id == record.id => WatchedMount {
                record_removed: false,
                ..before
            },
            (Some(record), before) => {
                self.new.push(name);
                WatchedMount::new(record, before)
            }
            (None, Some(before)) if before.running.is_some() => WatchedMount {
                record_removed: true,
                ..before
            },
            (None, _) => return,
        };
        self.mounts.insert(name, mount);
    }

    /// Finds the daemons of new and of replaced mounts, and watches them by pidfds.
    pub fn find_daemons(&mut self) {
        if self.new.is_empty() {
            return;
        }
        let mut daemons = match marks::by_mount() {
            Ok(daemons) => daemons,
            Err(error) => {
                let error = errno_text(error);
                tracing::warn!(error, "cannot find the daemons of mounts; will try again");
                return;
            }
        };
        for name in std::mem::take(&mut self.new) {
            let Some(mount) = self.mounts.get_mut(&name) else {
                continue;
            };
            for pidfd in daemons.remove(&mount.id).unwrap_or_default() {
                self.last_key += 1;
                let data = epoll::EventData::new_u64(self.last_key);
                if epoll::add(&self.events, &pidfd, data, epoll::EventFlags::IN).is_ok() {
                    mount.daemons.insert(self.last_key, pidfd);
                }
            }
            // The daemon has ended already, or its environment or PID namespace hides it.
            if mount.daemons.is_empty() {
                mount.next_repair = Some(Instant::now() + FIRST_DELAY);
            }
        }
    }

    /// Starts `spc repair` for mounts that are due, while slots are free.
    fn start_due(&mut self) {
        let now = Instant::now();
        let mut free = self.free_slots();
        for mount in self.mounts.values_mut() {
            let target = mount.target.as_str();
            let is_idle = mount.running.is_none() && free.has_one_for(mount);
            if !is_idle || mount.next_repair.is_none_or(|at| at > now) {
                continue;
            }
            // The kernel reports the status only after the process has been reaped.
            if let Some(ended) = mount.last_ended.take() {
                let reason = sys::wait_status(&ended).map_or("unknown".into(), describe_status);
                tracing::warn!(target, reason, request = %mount.request, "a process of the mount's daemon ended");
            }
            match start_repair(target, &mount.request) {
                Ok(pid) => {
                    mount.running = Some(pid);
                    free.take_for(mount);
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    mount.next_repair = Some(now + MAX_DELAY);
                }
            }
        }
    }

    /// Handles the end of a child process with this exit code. Returns whether the child was an
    /// `spc repair` that replaced a mount.
    pub fn child_ended(&mut self, pid: i32, code: Option<i32>) -> bool {
        let hidden = self.mounts.values().filter(|m| m.daemons.is_empty());
        let hidden = u32::try_from(hidden.count()).unwrap_or(u32::MAX);
        let check_interval = CHECK_INTERVAL.max(CHECK_SPACING * hidden);
        let mut all = self.mounts.iter_mut();
        let Some((name, mount)) = all.find(|(_, mount)| mount.running == Some(pid)) else {
            return false;
        };
        if mount.record_removed {
            let name = *name;
            self.mounts.remove(&name);
            return code == Some(0);
        }
        let (now, target) = (Instant::now(), mount.target.as_str());
        mount.running = None;
        match code {
            Some(code) if code == i32::from(NOTHING) => {
                mount.next_repair = mount.daemons.is_empty().then(|| now + check_interval);
            }
            Some(0) => {
                mount.attempts += 1;
                mount.repaired = Some(now);
                mount.next_repair = None;
            }
            _ => {
                mount.attempts += 1;
                if mount.attempts < MAX_ATTEMPTS {
                    let delay = backoff(mount.attempts);
                    mount.next_repair = Some(now + delay);
                    tracing::warn!(target, tries = mount.attempts, again_in = ?delay, "repair failed");
                } else {
                    mount.next_repair = None;
                    log_giving_up(target, mount.attempts);
                }
            }
        }
        code == Some(0)
    }
}

/// Numbers of `spc repair` processes that may still be started.
struct FreeSlots {
    all: usize,
    of_pods: usize,
}

impl FreeSlots {
    fn has_one_for(&self, mount: &WatchedMount) -> bool {
        self.all > 0 && (self.of_pods > 0 || !mount.of_pod)
    }

    fn take_for(&mut self, mount: &WatchedMount) {
        self.all = self.all.saturating_sub(1);
        if mount.of_pod {
            self.of_pods = self.of_pods.saturating_sub(1);
        }
    }
}

impl WatchedMount {
    /// Creates the state of a new mount, or of one that replaced the mount `before`.
    ///
    /// After a repair the attempts continue to count, otherwise they start at 0.
    fn new(record: &Record, before: Option<Self>) -> Self {
        let repaired = record
            .repair
            .as_ref()
            .is_some_and(|repair| repair.repairs > 0);
        let before = before.filter(|_| repaired);
        Self {
            target: record.target.clone(),
            id: record.id.clone(),
            request: record.request_id.clone(),
            of_pod: record.sandboxed,
            daemons: BTreeMap::new(),
            next_repair: None,
            attempts: before.as_ref().map_or(0, |before| before.attempts),
            repaired: before.as_ref().and_then(|before| before.repaired),
            last_ended: None,
            running: before.and_then(|before| before.running),
            record_removed: false,
        }
    }
}

/// Logs that a mount is not repaired any more.
fn log_giving_up(target: &str, tries: u32) {
    tracing::error!(
        target,
        tries,
        "giving up after too many repairs; hint: find out why the daemon ends, then unmount and mount again"
    );
}

/// Starts `spc repair` for a mount and returns its PID. `spc serve` reaps it with all other
/// children.
fn start_repair(target: &str, request: &str) -> Result<i32> {
    let child = Command::new("/proc/self/exe")
        .args(["repair", "--"])
        .arg(Path::new(target))
        .env(log::VARIABLE, request)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| Error::system("cannot start a repair").because(e))?;
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

    fn scheduler() -> RepairScheduler {
        RepairScheduler {
            events: epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            mounts: BTreeMap::new(),
            new: Vec::new(),
            last_key: 0,
        }
    }

    /// Name of the record.
    const NAME: u64 = 1;

    fn update(scheduler: &mut RepairScheduler, record: &Record) {
        scheduler.update_record(NAME, Some(record));
        scheduler.find_daemons();
    }

    /// Lets an `spc repair` for the mount end with an exit code.
    fn end_repair(scheduler: &mut RepairScheduler, code: i32) {
        scheduler.mounts.get_mut(&NAME).unwrap().running = Some(7);
        scheduler.child_ended(7, Some(code));
    }

    #[test]
    fn a_mount_whose_repairs_fail_is_given_up_until_it_is_mounted_again() {
        let mut scheduler = scheduler();
        update(&mut scheduler, &record(0));
        for attempts in 1..MAX_ATTEMPTS {
            end_repair(&mut scheduler, 32);
            assert!(
                scheduler.mounts[&NAME].next_repair.is_some(),
                "after {attempts}"
            );
        }
        end_repair(&mut scheduler, 32);
        assert_eq!(scheduler.mounts[&NAME].next_repair, None);
        // Another mount at the same target starts at 0.
        let other = Record {
            id: "2b".into(),
            ..record(0)
        };
        update(&mut scheduler, &other);
        assert_eq!(scheduler.mounts[&NAME].attempts, 0);
        assert!(scheduler.mounts[&NAME].next_repair.is_some());
    }

    #[test]
    fn a_mount_whose_daemon_keeps_dying_is_given_up_until_it_was_quiet() {
        let mut scheduler = scheduler();
        update(&mut scheduler, &record(0));
        for number in 1..=MAX_ATTEMPTS {
            end_repair(&mut scheduler, 0);
            let next = Record {
                id: format!("{number}"),
                ..record(number)
            };
            update(&mut scheduler, &next);
        }
        assert_eq!(scheduler.mounts[&NAME].attempts, MAX_ATTEMPTS);
        let daemon = some_process();
        scheduler.mounts.get_mut(&NAME).unwrap().daemons = BTreeMap::from([(1, daemon)]);
        scheduler.mounts.get_mut(&NAME).unwrap().next_repair = None;
        scheduler.daemon_ended(1);
        assert_eq!(scheduler.mounts[&NAME].next_repair, None);
        // A mount that lived long enough after its repair is repaired again.
        let long_ago = Instant::now().checked_sub(REPAIR_RESET * 2);
        let mount = scheduler.mounts.get_mut(&NAME).unwrap();
        mount.repaired = long_ago;
        mount.daemons = BTreeMap::from([(2, some_process())]);
        scheduler.daemon_ended(2);
        assert!(long_ago.is_none() || scheduler.mounts[&NAME].next_repair.is_some());
    }

    #[test]
    fn a_record_removed_during_a_repair_is_dropped_when_the_repair_ends() {
        let mut scheduler = scheduler();
        update(&mut scheduler, &record(0));
        scheduler.mounts.get_mut(&NAME).unwrap().running = Some(7);
        scheduler.update_record(NAME, None);
        assert_eq!(scheduler.free_slots().all, MAX_RUNNING - 1);
        scheduler.child_ended(7, Some(32));
        assert!(scheduler.mounts.is_empty());
        update(&mut scheduler, &record(0));
        scheduler.update_record(NAME, None);
        assert!(scheduler.mounts.is_empty());
    }

    fn some_process() -> OwnedFd {
        let own = rustix::process::getpid();
        rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap()
    }
}
