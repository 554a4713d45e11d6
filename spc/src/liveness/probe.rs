//! Probes mounts without blocking the caller.
//!
//! A subprocess probes each mount on a thread of its own, and is left behind with the threads that
//! hang. Only one thread on the whole host blocks on a mount: the others read its
//! [waiter lock](WaiterLock).

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statvfs, statx};

use crate::error::{Error, Result};
use crate::liveness::health::Health;
use crate::liveness::message::{Counts, Message};
use crate::liveness::waiter_lock::{self, WaiterLock};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::Session;
use crate::state::presence::entries_of;
use crate::state::record::{Record, State};
use crate::sys;

/// Time limit for a probe of one mount.
const LIMIT: Duration = Duration::from_secs(2);

/// Maximum number of concurrent probes. A probe that exceeded its limit no longer counts.
const CONCURRENCY: usize = 256;

/// Interval at which the lock of another waiter is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Mark behind the id of a mount whose size and use are asked for.
const COUNTS: &str = "+";

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
                    counts: false,
                });
            }
        }
    }
    let results = run_probes(&targets, LIMIT, CancelToken::at(Instant::now() + LIMIT))?;
    for (at, result) in indices.into_iter().zip(results) {
        states[at] = result.health;
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
#[derive(Clone)]
pub struct ProbeTarget {
    /// Path of the mount on the host.
    pub target: PathBuf,
    /// Id of the mount in the [`WaiterLock`].
    pub mount: u64,
    /// Whether size and use are asked for. A server may answer the rest, and not that.
    pub counts: bool,
}

/// Result of a probe.
#[derive(Clone, Copy)]
pub struct Probed {
    /// State of the mount.
    pub health: Health,
    /// Size and use, if they were asked for.
    pub counts: Option<Counts>,
}

impl From<Health> for Probed {
    fn from(health: Health) -> Self {
        Self {
            health,
            counts: None,
        }
    }
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
) -> Result<Probed> {
    let targets = std::slice::from_ref(target);
    loop {
        let left = cancel.remaining();
        let results = match prestarted.take() {
            Some(PrestartedProbe(mut child)) => {
                child.send_input(&child_input(targets));
                read_results(child, 1, left, cancel)?
            }
            None => run_probes(targets, left, cancel)?,
        };
        let result = results.first().copied().unwrap_or(Health::Hung.into());
        if result.health != Health::Hung || cancel.is_expired() {
            return Ok(result);
        }
        // The subprocess itself may have failed at once: do not restart it in a busy loop.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Probes mounts in a subprocess, each for `limit` at most.
fn run_probes(
    targets: &[ProbeTarget],
    limit: Duration,
    cancel: CancelToken<'_>,
) -> Result<Vec<Probed>> {
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
    for ProbeTarget {
        target,
        mount,
        counts,
    } in targets
    {
        let counts = if *counts { COUNTS } else { "" };
        input.extend(format!("{mount}{counts} ").into_bytes());
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
) -> Result<Vec<Probed>> {
    let mut results = vec![Probed::from(Health::Hung); count];
    // The subprocess keeps the limit itself. The deadline is for a subprocess that hangs.
    let rounds = u32::try_from(count / CONCURRENCY + 1).unwrap_or(u32::MAX);
    let deadline = Instant::now() + limit.saturating_mul(rounds) + Duration::from_secs(1);
    let mut open = count;
    while open > 0 {
        let Reply::Line(line) = child.line(cancel.with_deadline(deadline))? else {
            break;
        };
        if let Some(Message::Probed {
            index,
            health,
            counts,
        }) = Message::parse(&line)
            && let Some(result) = results.get_mut(index)
        {
            *result = Probed { health, counts };
            open -= 1;
        }
    }
    Ok(results)
}

/// Runs the subprocess: reads mounts from standard input, probes them, and prints one line per
/// result.
///
/// Each input item is the id of a mount, `COUNTS` or nothing, a space, a path and a NUL. Each
/// output line is a [`Message::Probed`].
///
/// # Errors
/// Fails if the host cannot be entered, an item is invalid, or standard output is closed.
pub fn child(session: &Session, limit: Duration) -> Result<()> {
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    read.map_err(|e| Error::system("cannot read the targets").because(e))?;
    let (results_in, results) = channel();
    let mut run = ProbeRun {
        session,
        limit,
        results_in,
        results,
        open: Vec::new(),
    };
    let items = input.split(|byte| *byte == 0);
    run.all(items.filter(|line| !line.is_empty()))
}

/// Probe without a result yet.
struct Pending {
    index: usize,
    since: Instant,
}

/// Result of a probe, or why the waiter lock cannot be used.
type ProbeResult = std::io::Result<Probed>;

/// Run of a subprocess over its mounts.
struct ProbeRun<'a> {
    session: &'a Session,
    limit: Duration,
    results_in: Sender<(usize, ProbeResult)>,
    results: Receiver<(usize, ProbeResult)>,
    open: Vec<Pending>,
}

impl ProbeRun<'_> {
    fn all<'a>(&mut self, items: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        for (index, line) in items.enumerate() {
            while self.open.len() >= CONCURRENCY {
                self.wait_for_one()?;
            }
            let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let mount = std::str::from_utf8(&line[..end]).ok();
            let counts = mount.is_some_and(|mount| mount.ends_with(COUNTS));
            let mount = mount.and_then(|mount| mount.trim_end_matches(COUNTS).parse().ok());
            let target = ProbeTarget {
                target: PathBuf::from(OsStr::from_bytes(&line[end + 1..])),
                mount: mount.ok_or_else(|| Error::usage("a target without a mount"))?,
                counts,
            };
            self.start(index, &target)?;
        }
        while !self.open.is_empty() {
            self.wait_for_one()?;
        }
        Ok(())
    }

    /// Starts a probe on a thread of its own.
    fn start(&mut self, index: usize, target: &ProbeTarget) -> Result<()> {
        let since = Instant::now();
        self.open.push(Pending { index, since });
        loop {
            let (target, results, limit) = (target.clone(), self.results_in.clone(), self.limit);
            let probe = move || {
                let result = probe_once(&target, limit);
                // The receiver is gone if the result comes too late.
                let _ = results.send((index, result));
            };
            let start = move || {
                let thread = std::thread::Builder::new().stack_size(STACK);
                thread.spawn(probe).map(drop)
            };
            // A thread inherits the namespace of its parent, so the host's thread starts it.
            match self.session.host.run("starting a probe", start)? {
                Ok(()) => return Ok(()),
                // At the limit of threads, a probe that finishes makes room.
                Err(_) if self.open.len() > 1 => self.wait_for_one()?,
                Err(error) => {
                    return Err(Error::system("cannot start a thread").because(error));
                }
            }
        }
    }

    /// Waits for the next result or for the limit of the oldest probe, and prints the result.
    fn wait_for_one(&mut self) -> Result<()> {
        let Some(oldest) = self.open.iter().min_by_key(|open| open.since) else {
            return Ok(());
        };
        let left = self.limit.saturating_sub(oldest.since.elapsed());
        let (index, result) = match self.results.recv_timeout(left) {
            Ok((index, result)) => (index, result.map_err(waiter_lock::cannot_use)?),
            Err(_) => (oldest.index, Health::Hung.into()),
        };
        // The result of a probe that exceeded its limit has been printed.
        if let Some(at) = self.open.iter().position(|open| open.index == index) {
            self.open.swap_remove(at);
            let Probed { health, counts } = result;
            Message::Probed {
                index,
                health,
                counts,
            }
            .send()?;
        }
        Ok(())
    }
}

/// Probes a mount once no other process is blocked on it. Runs on a thread of its own in the host's
/// mount namespace, which may be blocked for ever.
///
/// The thread has its own file descriptors. The kernel therefore releases its waiter lock when this
/// thread ends, not when the last thread of the process that hangs does.
fn probe_once(target: &ProbeTarget, limit: Duration) -> ProbeResult {
    // Without a table of its own, the locks of a process end together.
    if let Err(error) = sys::unshare_fds() {
        tracing::debug!(%error, "the waiter lock belongs to the whole process");
    }
    let waiter = WaiterLock::open_here()?;
    while let Some(since) = waiter.try_acquire(target.mount)? {
        if since >= limit {
            return Ok(Health::Hung.into());
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
    let path = target.target.as_path();
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    if statx(CWD, path, flags, StatxFlags::BASIC_STATS).is_err() {
        return Ok(Health::Stale.into());
    }
    Ok(Probed {
        health: Health::Ok,
        counts: target.counts.then(|| counts(path)).flatten(),
    })
}

fn counts(path: &Path) -> Option<Counts> {
    let found = statvfs(path).ok()?;
    Some(Counts {
        unit: found.f_frsize.max(1),
        blocks: [found.f_blocks, found.f_bfree, found.f_bavail],
        inodes: [found.f_files, found.f_ffree, found.f_favail],
    })
}
