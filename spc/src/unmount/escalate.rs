//! Unmounts in escalating steps: plain, then forced, then lazy.
//!
//! Each step has a time limit and runs in a subprocess. spc leaves the subprocess behind if it
//! blocks in the kernel.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, Reason, Result, show};
use crate::host::mount_id::MountId;
use crate::host::mountinfo::{self, Entry};
use crate::host::unmount as host_unmount;
use crate::liveness::health::Health;
use crate::liveness::message::Message;
use crate::liveness::probe::{self, ProbeTarget};
use crate::liveness::{path, waiter_lock};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::presence::entry_of;
use crate::state::{Record, Session};
use crate::unmount::holders::{self, Holders};

/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(10);

/// Time to retry a busy unmount, because a probe by another command may hold the mount for a
/// moment.
const BUSY_RETRY: Duration = Duration::from_millis(200);

/// Time for blocked processes to leave the mount after a forced unmount has failed their requests.
const FORCE_GRACE: Duration = Duration::from_secs(2);

/// In-memory file systems, whose unmount contacts no server and no daemon.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// File systems whose path lookups contact no server and no daemon.
const LOCAL: [&str; 10] = [
    "btrfs", "erofs", "ext4", "f2fs", "overlay", "ramfs", "rootfs", "squashfs", "tmpfs", "xfs",
];

/// Step of an unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnmountStep {
    /// Plain unmount; fails if the mount is busy.
    Unmount,
    /// Forced unmount (`MNT_FORCE`), which fails outstanding requests.
    Force,
    /// Lazy unmount (`MNT_DETACH`), which works on a busy mount.
    Detach,
}

impl UnmountStep {
    fn word(self) -> &'static str {
        match self {
            Self::Unmount => "unmount",
            Self::Force => "force",
            Self::Detach => "detach",
        }
    }

    fn flags(self) -> UnmountFlags {
        match self {
            Self::Unmount => UnmountFlags::empty(),
            Self::Force => UnmountFlags::FORCE,
            Self::Detach => UnmountFlags::DETACH,
        }
    }
}

/// Outcome of a successful unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountOutcome {
    /// The mount is gone.
    Free,
    /// The mount is detached, and processes may still use it.
    Detached,
    /// The mount is out of the mount table, but the kernel has not finished: for example, it is
    /// still writing data back to a server.
    Unfinished,
}

/// Result of one step.
enum StepResult {
    Done,
    /// The mount is not the topmost one on its target.
    NotThere,
    Failed(Errno),
    Timeout,
}

/// Unmounts with as many steps as `mode` allows.
///
/// # Errors
/// Fails if the mount still exists; the error lists the processes that use it.
pub fn escalate(session: &Session, record: &Record, mode: UnmountMode) -> Result<UnmountOutcome> {
    let mut steps = vec![UnmountStep::Unmount];
    steps.extend(mode.force.then_some(UnmountStep::Force));
    steps.extend(mode.lazy.then_some(UnmountStep::Detach));
    let mut last = StepResult::Timeout;
    for step in steps {
        tracing::debug!(target = %record.target, rung = step.word(), "unmounting");
        last = run_step(record, step)?;
        match last {
            StepResult::Done if step == UnmountStep::Detach => return Ok(UnmountOutcome::Detached),
            StepResult::Done => return Ok(UnmountOutcome::Free),
            StepResult::NotThere if entry_of(session, record)?.is_none() => {
                return Ok(UnmountOutcome::Free);
            }
            StepResult::NotThere => {
                return Err(failed(record)
                    .because("another mount covers it")
                    .hint("on the host, unmount that one first"));
            }
            // The mount table no longer has it. With -f or -l, the caller does not wait for the
            // kernel.
            StepResult::Timeout if entry_of(session, record)?.is_none() => {
                return Ok(match mode.force || mode.lazy {
                    true => UnmountOutcome::Detached,
                    false => UnmountOutcome::Unfinished,
                });
            }
            StepResult::Failed(_) | StepResult::Timeout => {}
        }
    }
    Err(match (last, entry_of(session, record)?) {
        (StepResult::Failed(Errno::BUSY), Some(entry)) => busy(record, &entry, mode),
        (StepResult::Failed(error), _) => failed(record).because(error),
        (_, entry) => failed(record)
            .because(format!("it does not answer: waited {} s", LIMIT.as_secs()))
            .reason_is(Reason::NoAnswer)
            .hint(match entry.and_then(|entry| hung_parent(session, &entry)) {
                Some(target) => format!(
                    "it is on {target}, which does not answer: unmount both with `spc umount -R -f -l {target}`"
                ),
                None if mode.lazy => "the kernel did not release the mount; see dmesg".into(),
                None => "fail its outstanding requests with -f, or detach it with -l".into(),
            }),
    })
}

/// Returns the target of the parent mount if that mount hangs, so that this one cannot be reached.
fn hung_parent(session: &Session, entry: &Entry) -> Option<String> {
    let (parent, unique) = (entry.parent, entry.parent_unique);
    let find = move || mountinfo::find(parent, unique);
    let on = session.host.run("looking at a mount", find).ok()?.ok()??;
    let target = ProbeTarget {
        target: on.target.clone(),
        mount: waiter_lock::key(MountId {
            id: parent,
            unique,
            is_root: true,
        }),
        counts: false,
    };
    let probed = probe::probe(
        &target,
        None,
        CancelToken::at(Instant::now() + Duration::from_secs(1)),
    )
    .ok()?;
    (probed.health == Health::Hung).then(|| show(&on.target))
}

fn failed(record: &Record) -> Error {
    Error::mount(format!("cannot unmount {}", record.target))
}

/// Returns the error for a busy mount: the processes that use it, and a hint how to proceed.
fn busy(record: &Record, entry: &Entry, mode: UnmountMode) -> Error {
    let holders = holders::find(entry);
    let hint = match &holders {
        Holders { below, .. } if !below.is_empty() => {
            "unmount what is mounted below it first (-R does, if spc mounted that), or detach it with -l"
        }
        _ if mode.force && entry.is_fuse() => {
            "its requests have failed, so it no longer works: detach it with -l"
        }
        holders if holders.only_wait() && !mode.force => {
            "fail the outstanding requests with -f, or detach it with -l"
        }
        _ => "end what uses it, or detach it with -l",
    };
    failed(record)
        .because(Errno::BUSY)
        .reason_is(Reason::Busy)
        .log(holders.lines())
        .hint(hint)
}

/// Unmounts an idle mount without a subprocess, where that cannot block. The file system must be in
/// memory, its parent mount local, and its path cached. Returns false if any of this does not hold,
/// or if the mount is busy.
///
/// # Errors
/// Fails if the host's thread does not respond in time.
pub fn unmount_if_idle(session: &Session, record: &Record, entry: &Entry) -> Result<bool> {
    if !IN_MEMORY.contains(&&*entry.fs_type) {
        return Ok(false);
    }
    let (on, on_unique) = (entry.parent, entry.parent_unique);
    let (id, unique) = (record.mount_id, record.unique_id);
    let target = entry.target.clone();
    session.host.run("unmounting", move || {
        let on = mountinfo::find(on, on_unique).ok().flatten();
        on.is_some_and(|on| LOCAL.contains(&&*on.fs_type))
            && host_unmount::detach_cached(&target, id, unique) == Ok(true)
    })
}

/// Runs one step in a subprocess.
fn run_step(record: &Record, step: UnmountStep) -> Result<StepResult> {
    let (id, unique) = (record.mount_id.to_string(), record.unique_id.to_string());
    let args = ["detach", &record.target, &id, &unique, step.word()];
    let mut child = Subprocess::spawn_tied(&args, b"")?;
    let reply = child.line(CancelToken::at(Instant::now() + LIMIT))?;
    Ok(match reply {
        Reply::Line(line) => match Message::parse(&line) {
            Some(Message::Done) => StepResult::Done,
            Some(Message::Held) => StepResult::Timeout,
            Some(Message::Failed(errno)) => StepResult::Failed(Errno::from_raw_os_error(errno)),
            Some(Message::NotThere) => StepResult::NotThere,
            Some(Message::Probed { .. }) | None => StepResult::Failed(Errno::IO),
        },
        Reply::Timeout => StepResult::Timeout,
        Reply::Eof => {
            return Err(failed(record)
                .because("its subprocess died")
                .hint("try again; the kernel may have killed it for lack of memory"));
        }
    })
}

/// Runs the subprocess: performs one step and prints its result.
///
/// # Errors
/// Fails if the host cannot be entered.
pub fn child(
    session: &Session,
    target: &Path,
    id: u64,
    unique: u64,
    step: UnmountStep,
) -> Result<()> {
    if path::is_held(session, target, LIMIT)? {
        return Message::Held.send();
    }
    let target = target.to_owned();
    let deadline = Instant::now()
        + match step {
            UnmountStep::Unmount => BUSY_RETRY,
            UnmountStep::Force => FORCE_GRACE,
            UnmountStep::Detach => Duration::ZERO,
        };
    let detach = move || loop {
        match host_unmount::detach(&target, id, unique, step.flags()) {
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    };
    // The parent process waits for `LIMIT` only; the rest is slack for slow starts.
    let result = match session.host.run_within("unmounting", 2 * LIMIT, detach)? {
        Ok(true) => Message::Done,
        Ok(false) => Message::NotThere,
        Err(error) => Message::Failed(error.raw_os_error()),
    };
    result.send()
}

/// Options of umount(8) that allow further steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnmountMode {
    /// `-l`: detach the mount if the other steps fail.
    pub lazy: bool,
    /// `-f`: fail outstanding requests if a plain unmount fails.
    pub force: bool,
}
