//! Probes mounts without blocking the caller.
//!
//! A subprocess probes each mount on a thread of its own, and is left behind with the threads that
//! hang. Only one thread on the whole host blocks on a mount: the others read its
//! [waiter lock](WaiterLock).

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::error::{Error, Result};
use crate::liveness::health::Health;
use crate::liveness::message::Message;
use crate::liveness::waiter_lock::WaiterLock;
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::Session;
use crate::state::presence::entries_of;
use crate::state::record::{Record, State};

/// Time limit for a probe of one mount.
const LIMIT: Duration = Duration::from_secs(2);

/// Maximum number of concurrent probes. A probe that exceeded its limit no longer counts.
const CONCURRENCY: usize = 256;

/// Interval at which the lock of another waiter is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Stack size in bytes of a thread that makes one system call.
const STACK: usize = 64 * 1024;

/// Returns the states of recorded mounts, in their order. Takes at most 2 s for each 256 mounts
/// that hang.
///
/// # Errors
/// Fails if the host's mount table cannot be read or the subprocess cannot be started.
pub fn probe_all(session: &Session, records: &[Record]) -> Result<Vec<Health>> {
    let entries = entries_of(session, records)?;
    let mut states = vec![Health::Busy; records.len()];
    let (mut indices, mut targets) = (Vec::new(), Vec::new());
    for (at, (record, entry)) in records.iter().zip(entries).enumerate() {
        match entry {
            _ if record.state != State::Mounted => {}
            None => states[at] = Health::Gone,
            Some(entry) => {
                indices.push(at);
                targets.push(ProbeTarget {
                    target: entry.target,
                    mount: key(record),
                });
            }
        }
    }
    let results = run_probes(&targets, LIMIT, CancelToken::at(Instant::now() + LIMIT))?;
    for (at, health) in indices.into_iter().zip(results) {
        states[at] = health;
    }
    Ok(states)
}

fn key(record: &Record) -> u64 {
    match record.unique_id {
        0 => record.mount_id,
        unique => unique,
    }
}

/// Mount to probe.
pub struct ProbeTarget {
    /// Path of the mount on the host.
    pub target: PathBuf,
    /// Id of the mount in the [`WaiterLock`].
    pub mount: u64,
}

/// Subprocess that probes as soon as it receives its target.
pub struct PrestartedProbe(Subprocess);

/// Starts a subprocess for a probe that may take until `deadline`.
///
/// # Errors
/// Fails if the subprocess cannot be started.
pub fn prestart(deadline: Instant) -> Result<PrestartedProbe> {
    let limit = deadline.saturating_duration_since(Instant::now());
    Subprocess::spawn_waiting(&child_args(limit)).map(PrestartedProbe)
}

/// Probes a mount that is known to exist, until it responds or `cancel` ends the wait.
///
/// # Errors
/// Fails if the wait is cancelled or the subprocess cannot be started.
pub fn probe(
    target: &ProbeTarget,
    mut prestarted: Option<PrestartedProbe>,
    cancel: CancelToken<'_>,
) -> Result<Health> {
    let targets = std::slice::from_ref(target);
    loop {
        let left = cancel.remaining();
        let states = match prestarted.take() {
            Some(PrestartedProbe(mut child)) => {
                child.send_input(&child_input(targets));
                read_results(child, 1, left, cancel)?
            }
            None => run_probes(targets, left, cancel)?,
        };
        match states.first() {
            // The subprocess itself may have failed at once: do not restart it in a busy loop.
            Some(Health::Hung) if !cancel.is_expired() => {
                std::thread::sleep(Duration::from_millis(100));
            }
            health => return Ok(health.copied().unwrap_or(Health::Hung)),
        }
    }
}

/// Probes mounts in a subprocess, each for `limit` at most.
fn run_probes(
    targets: &[ProbeTarget],
    limit: Duration,
    cancel: CancelToken<'_>,
) -> Result<Vec<Health>> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let child = Subprocess::spawn_detached(&child_args(limit), &child_input(targets))?;
    read_results(child, targets.len(), limit, cancel)
}

fn child_args(limit: Duration) -> [String; 2] {
    ["look".into(), limit.as_millis().to_string()]
}

fn child_input(targets: &[ProbeTarget]) -> Vec<u8> {
    let mut input = Vec::new();
    for ProbeTarget { target, mount } in targets {
        input.extend(mount.to_string().into_bytes());
        input.push(b' ');
        input.extend(target.as_os_str().as_bytes());
        input.push(0);
    }
    input
}

/// Reads the results for `count` mounts. A mount without a result counts as hung.
fn read_results(
    mut child: Subprocess,
    count: usize,
    limit: Duration,
    cancel: CancelToken<'_>,
) -> Result<Vec<Health>> {
    let mut states = vec![Health::Hung; count];
    // The subprocess keeps the limit itself. The deadline is for a subprocess that hangs.
    let rounds = u32::try_from(count / CONCURRENCY + 1).unwrap_or(u32::MAX);
    let deadline = Instant::now() + limit.saturating_mul(rounds) + Duration::from_secs(1);
    let mut open = count;
    while open > 0 {
        let Reply::Line(line) = child.line(cancel.with_deadline(deadline))? else {
            break;
        };
        if let Some(Message::Probed { index, health }) = Message::parse(&line)
            && let Some(state) = states.get_mut(index)
        {
            *state = health;
            open -= 1;
        }
    }
    Ok(states)
}

/// Runs the subprocess: reads mounts from standard input, probes them, and prints one line per
/// result.
///
/// Each input item is the id of a mount, a space, a path and a NUL. Each output line is a
/// [`Message::Probed`].
///
/// # Errors
/// Fails if the host cannot be entered, an item is invalid, or standard output is closed.
pub fn child(session: &Session, limit: Duration) -> Result<()> {
    let waiter = Arc::new(WaiterLock::open(&session.host)?);
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    read.map_err(|e| Error::system("cannot read the targets").because(e))?;
    let (results_in, results) = channel();
    let mut run = ProbeRun {
        session,
        waiter,
        limit,
        results_in,
        results,
        open: Vec::new(),
        hung: Vec::new(),
    };
    let items = input
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty());
    let done = run.all(items);
    // After an error, mounts without a result must not appear as hung to other processes.
    for open in &run.open {
        run.waiter.release(open.mount);
    }
    done
}

/// Probe without a result yet.
struct Pending {
    index: usize,
    mount: u64,
    since: Instant,
    /// Path to probe once another process has released the waiter lock; none while probing.
    held: Option<PathBuf>,
}

/// Run of a subprocess over its mounts.
struct ProbeRun<'a> {
    session: &'a Session,
    waiter: Arc<WaiterLock>,
    limit: Duration,
    results_in: Sender<(usize, Health)>,
    results: Receiver<(usize, Health)>,
    open: Vec<Pending>,
    /// Probes that were reported as hung and may still finish.
    hung: Vec<Pending>,
}

impl ProbeRun<'_> {
    fn all<'a>(&mut self, items: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        for (index, line) in items.enumerate() {
            while self.open.len() >= CONCURRENCY {
                self.wait_for_one()?;
            }
            let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let mount = std::str::from_utf8(&line[..end]).ok();
            let mount = mount.and_then(|mount| mount.parse().ok());
            let target = PathBuf::from(OsStr::from_bytes(&line[end + 1..]));
            let open = Pending {
                index,
                mount: mount.ok_or_else(|| Error::usage("a target without a mount"))?,
                since: Instant::now(),
                held: None,
            };
            self.start(open, target)?;
        }
        while !self.open.is_empty() {
            self.wait_for_one()?;
        }
        // All results are printed. A mount that responds later must not stay locked for as long as
        // another one of this process does not.
        while !self.hung.is_empty() {
            let Ok((index, _)) = self.results.recv() else {
                break;
            };
            let responded = self.hung.extract_if(.., |hung| hung.index == index);
            responded.for_each(|hung| self.waiter.release(hung.mount));
        }
        Ok(())
    }

    /// Starts a probe, unless another process is already blocked on the mount.
    fn start(&mut self, mut open: Pending, target: PathBuf) -> Result<()> {
        let cannot = |what: &str, e| Error::system(what.to_owned()).because(e);
        let held = self.waiter.try_acquire(open.mount);
        match held.map_err(|e| cannot("cannot read the waiter lock of a mount", e))? {
            Some(since) if since >= self.limit => {
                return Message::Probed {
                    index: open.index,
                    health: Health::Hung,
                }
                .send();
            }
            Some(_) => {
                open.held = Some(target);
                self.open.push(open);
                return Ok(());
            }
            None => {}
        }
        let index = open.index;
        self.open.push(open);
        loop {
            let (target, results_in) = (target.clone(), self.results_in.clone());
            let waiter = Arc::clone(&self.waiter);
            // A thread inherits the namespace of its parent, so the host's thread starts it.
            let start = move || start_thread(index, target, results_in, waiter);
            match self.session.host.run("starting a probe", start)? {
                Ok(()) => return Ok(()),
                // At the limit of threads, a probe that finishes makes room.
                Err(_) if self.open.len() > 1 => self.wait_for_one()?,
                Err(error) => return Err(cannot("cannot start a thread", error)),
            }
        }
    }

    /// Waits for the next result or for the limit of the oldest probe, and prints the result.
    fn wait_for_one(&mut self) -> Result<()> {
        let Some(oldest) = self.open.iter().min_by_key(|open| open.since) else {
            return Ok(());
        };
        let (oldest, left) = (
            oldest.index,
            self.limit.saturating_sub(oldest.since.elapsed()),
        );
        let others = self.open.iter().any(|open| open.held.is_some());
        let wait = if others {
            left.min(RETRY_INTERVAL)
        } else {
            left
        };
        let (index, health) = match self.results.recv_timeout(wait) {
            Ok(result) => result,
            Err(_) if wait < left => return self.try_held(),
            Err(_) => (oldest, Health::Hung),
        };
        let is_same = |open: &Pending| open.index == index;
        if let Some(at) = self.hung.iter().position(is_same) {
            // The result is printed already, but other processes may probe the mount again.
            self.waiter.release(self.hung.swap_remove(at).mount);
        }
        if let Some(at) = self.open.iter().position(is_same) {
            let open = self.open.swap_remove(at);
            match health {
                Health::Hung => self.hung.push(open),
                _ => self.waiter.release(open.mount),
            }
            Message::Probed { index, health }.send()?;
        }
        Ok(())
    }

    /// Starts the probes that were waiting for another process to release the waiter lock.
    fn try_held(&mut self) -> Result<()> {
        let held = self.open.extract_if(.., |open| open.held.is_some());
        for mut open in held.collect::<Vec<_>>() {
            if let Some(target) = open.held.take() {
                self.start(open, target)?;
            }
        }
        Ok(())
    }
}

fn start_thread(
    index: usize,
    target: PathBuf,
    results_in: Sender<(usize, Health)>,
    waiter: Arc<WaiterLock>,
) -> std::io::Result<()> {
    let probe = move || {
        // Keeps the lock file open, and with it the waiter lock, for as long as this thread hangs.
        let _held = waiter;
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
        let result = statx(CWD, &target, flags, StatxFlags::BASIC_STATS);
        let health = if result.is_ok() {
            Health::Ok
        } else {
            Health::Stale
        };
        // The receiver is gone if the result comes too late.
        let _ = results_in.send((index, health));
    };
    let thread = std::thread::Builder::new().stack_size(STACK);
    thread.spawn(probe).map(drop)
}
