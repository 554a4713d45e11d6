//! The ladder by which a mount is taken off: asked for, then forced, then detached. Each rung has a limit, and is taken
//! by a process of its own, which is left behind if the kernel does not let go of it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, Reason, Result, show};
use crate::host::mountinfo::{self, Entry};
use crate::host::target::MountId;
use crate::host::unmount as host_unmount;
use crate::liveness::path::{self, HELD};
use crate::liveness::probe::{self, Health, ProbeTarget};
use crate::liveness::waiter_lock;
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::presence::entry_of;
use crate::state::{Record, Session};
use crate::unmount::holders::{self, Found};

/// How long one rung may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a mount may be busy before that is taken for its use by somebody: another command may be looking at it.
const BUSY_RETRY: Duration = Duration::from_millis(200);

/// How long those who waited for an answer may take to go away once they have been told that none will come.
const FORCE_GRACE: Duration = Duration::from_secs(2);

/// File systems that end without a word to anybody.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// File systems that ask no server and no daemon where a name leads.
const LOCAL: [&str; 10] = [
    "btrfs", "erofs", "ext4", "f2fs", "overlay", "ramfs", "rootfs", "squashfs", "tmpfs", "xfs",
];

/// One way to take a mount off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnmountStep {
    /// If nobody uses it.
    Unmount,
    /// As that, and outstanding requests are given up.
    Force,
    /// Now, whoever uses it.
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

/// How a mount has come off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountOutcome {
    /// Nobody used it.
    Free,
    /// Somebody may use it still.
    Detached,
    /// The kernel is still at work on it, as when it waits for a server to take what was written.
    AtWork,
}

/// What a rung came to.
enum StepResult {
    Done,
    /// There is no such mount at the top of its target.
    NotThere,
    Failed(Errno),
    Late,
}

/// Takes a mount off, as far up the ladder as it may go.
///
/// # Errors
/// It is still there; the error says who holds it.
pub fn escalate(session: &Session, record: &Record, how: UnmountMode) -> Result<UnmountOutcome> {
    let mut rungs = vec![UnmountStep::Unmount];
    rungs.extend(how.force.then_some(UnmountStep::Force));
    rungs.extend(how.lazy.then_some(UnmountStep::Detach));
    let mut last = StepResult::Late;
    for rung in rungs {
        tracing::debug!(target = %record.target, rung = rung.word(), "unmounting");
        last = take(record, rung)?;
        match last {
            StepResult::Done if rung == UnmountStep::Detach => return Ok(UnmountOutcome::Detached),
            StepResult::Done => return Ok(UnmountOutcome::Free),
            StepResult::NotThere if entry_of(session, record)?.is_none() => {
                return Ok(UnmountOutcome::Free);
            }
            StepResult::NotThere => {
                return Err(failed(record)
                    .because("another mount covers it")
                    .hint("on the host, unmount that one first"));
            }
            // It is off, and those who asked for more than that do not wait for the rest.
            StepResult::Late if entry_of(session, record)?.is_none() => {
                return Ok(match how.force || how.lazy {
                    true => UnmountOutcome::Detached,
                    false => UnmountOutcome::AtWork,
                });
            }
            StepResult::Failed(_) | StepResult::Late => {}
        }
    }
    Err(match (last, entry_of(session, record)?) {
        (StepResult::Failed(Errno::BUSY), Some(entry)) => busy(session, record, &entry, how),
        (StepResult::Failed(error), _) => failed(record).because(error),
        (_, entry) => failed(record)
            .because(format!("it does not answer: waited {} s", LIMIT.as_secs()))
            .reason_is(Reason::NoAnswer)
            .hint(match entry.and_then(|entry| hung_below(session, &entry)) {
                Some(target) => format!(
                    "it is on {target}, which does not answer: take both off with `spc umount -R -f -l {target}`"
                ),
                None if how.lazy => "the host's kernel does not let go of it; see dmesg".into(),
                None => "give up on its requests with -f, or detach it with -l".into(),
            }),
    })
}

/// Where the mount is that a mount is on, if that does not answer: then the other one cannot be reached.
fn hung_below(session: &Session, entry: &Entry) -> Option<String> {
    let (parent, unique) = (entry.parent, entry.parent_unique);
    let look = move || mountinfo::find(parent, unique);
    let on = session.host.run("looking at a mount", look).ok()?.ok()??;
    let looked = ProbeTarget {
        target: on.target.clone(),
        mount: waiter_lock::key(MountId {
            id: parent,
            unique,
            is_root: true,
        }),
    };
    let health = probe::probe(
        &looked,
        None,
        CancelToken::at(Instant::now() + Duration::from_secs(1)),
    )
    .ok()?;
    (health == Health::Hung).then(|| show(&on.target))
}

fn failed(record: &Record) -> Error {
    Error::mount(format!("cannot unmount {}", record.target))
}

/// The error for a mount that is in use: who holds it, and what to do about that.
fn busy(session: &Session, record: &Record, entry: &Entry, how: UnmountMode) -> Error {
    let found = holders::find(&session.host, entry);
    let hint = match &found {
        Found { below, .. } if !below.is_empty() => {
            "unmount what is mounted below it first (-R does, if spc mounted that), or detach it with -l"
        }
        _ if how.force && entry.is_fuse() => {
            "its requests were given up, so it answers nobody any more: detach it with -l"
        }
        found if found.only_wait() && !how.force => {
            "give up on the answers that are waited for with -f, or detach it with -l"
        }
        _ => "end what uses it, or detach it with -l",
    };
    failed(record)
        .because(Errno::BUSY)
        .reason_is(Reason::Busy)
        .log(found.lines())
        .hint(hint)
}

/// Takes the first rung here, without a process of its own, where nobody can keep us waiting: the mount is in memory, on a
/// file system of the host's own, and the way there is in the kernel's cache. False if that is not so, or it is not off.
///
/// # Errors
/// The host does not answer.
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
            && host_unmount::detach_at_once(&target, id, unique) == Ok(true)
    })
}

/// Has one rung taken by a process of its own.
fn take(record: &Record, rung: UnmountStep) -> Result<StepResult> {
    let (id, unique) = (record.mount_id.to_string(), record.unique_id.to_string());
    let words = ["detach", &record.target, &id, &unique, rung.word()];
    let mut child = Subprocess::spawn_tied(&words, b"")?;
    let answer = child.line(CancelToken::at(Instant::now() + LIMIT))?;
    Ok(match answer {
        Reply::Line(line) => match line.split_once(' ') {
            None if line == "done" => StepResult::Done,
            // As late as another that has waited there for so long.
            None if line == HELD => StepResult::Late,
            None => StepResult::NotThere,
            Some((_, number)) => StepResult::Failed(Errno::from_raw_os_error(
                number.parse().unwrap_or(libc::EIO),
            )),
        },
        Reply::Timeout => StepResult::Late,
        Reply::Eof => {
            return Err(failed(record)
                .because("the process that was to do it ended")
                .hint("try again; it may have been killed for want of memory"));
        }
    })
}

/// The other side: takes the rung, and says what came of it.
///
/// # Errors
/// The host cannot be entered.
pub fn child(
    session: &Session,
    target: &Path,
    id: u64,
    unique: u64,
    rung: UnmountStep,
) -> Result<()> {
    if path::is_held(session, target, LIMIT)? {
        println!("{HELD}");
        return Ok(());
    }
    let target = target.to_owned();
    let until = Instant::now()
        + match rung {
            UnmountStep::Unmount => BUSY_RETRY,
            UnmountStep::Force => FORCE_GRACE,
            UnmountStep::Detach => Duration::ZERO,
        };
    let detach = move || loop {
        match host_unmount::detach(&target, id, unique, rung.flags()) {
            Err(Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    };
    // Whoever sent us does not wait longer than that.
    match session.host.run_within("unmounting", 2 * LIMIT, detach)? {
        Ok(true) => println!("done"),
        Ok(false) => println!("none"),
        Err(error) => println!("errno {}", error.raw_os_error()),
    }
    Ok(())
}

/// umount(8)'s ways.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnmountMode {
    /// `-l`: detach now, clean up when it is no longer busy.
    pub lazy: bool,
    /// `-f`: give up on outstanding requests.
    pub force: bool,
}
