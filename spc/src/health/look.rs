//! The state of a mount, found without ever waiting for it: the look is made by a child process,
//! which is left behind if it hangs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::Serialize;

use crate::error::{Error, Result, errno_text};
use crate::mount::ledger::{Record, State};
use crate::mount::mounter::Session;
use crate::mount::recover::entry_of;

/// How long all looks together may take.
const LIMIT: Duration = Duration::from_secs(2);

/// What a look at a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Ok,
    /// It answers with an error: its server or daemon is gone.
    Stale,
    /// It does not answer.
    Hung,
    /// It is not mounted any more.
    Gone,
    /// A command is at work on it, or died at work.
    Busy,
}

impl Health {
    /// Each of them.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Stale, Self::Hung, Self::Gone, Self::Busy];

    /// The word that `spc ls` prints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stale => "stale",
            Self::Hung => "hung",
            Self::Gone => "gone",
            Self::Busy => "busy",
        }
    }
}

/// Exit codes of the child that looks.
const LOOK_OK: u8 = 0;
const LOOK_STALE: u8 = 3;

/// The states of these mounts, in their order.
///
/// # Errors
/// The host's mount table cannot be read.
pub fn states(session: &Session, records: &[Record]) -> Result<Vec<Health>> {
    let mut looks = Vec::new();
    for record in records {
        looks.push(if record.state != State::Mounted {
            Err(Health::Busy)
        } else if entry_of(session, record)?.is_none() {
            Err(Health::Gone)
        } else {
            Ok(start(&record.target)?)
        });
    }
    let deadline = Instant::now() + LIMIT;
    Ok(looks
        .into_iter()
        .map(|look| match look {
            // Nobody is asked, so nothing fails.
            Ok(child) => finish(child, deadline, || Ok(())).unwrap_or(Health::Hung),
            Err(known) => known,
        })
        .collect())
}

/// The state of the mount on a target that is known to be there, until `deadline`, or until `go_on` fails,
/// which is asked all the while.
///
/// # Errors
/// Whatever `go_on` says, or the look cannot be started.
pub fn at(target: &str, deadline: Instant, go_on: impl Fn() -> Result<()>) -> Result<Health> {
    loop {
        // A look gives up earlier than one who waits for a daemon's first word may.
        match finish(start(target)?, deadline, &go_on)? {
            // It may be the look that failed, at once: then not as fast as that can be.
            Health::Hung if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            health => return Ok(health),
        }
    }
}

fn start(target: &str) -> Result<Child> {
    Command::new("/proc/self/exe")
        .args(["look", target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| Error::system("cannot start a look at a mount").because(errno_text(e)))
}

fn finish(mut child: Child, deadline: Instant, go_on: impl Fn() -> Result<()>) -> Result<Health> {
    let stopped = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return Ok(match status.code() {
                    Some(0) => Health::Ok,
                    Some(code) if code == i32::from(LOOK_STALE) => Health::Stale,
                    _ => Health::Hung,
                });
            }
            Ok(None) if Instant::now() < deadline => {
                if let Err(stopped) = go_on() {
                    break Err(stopped);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => break Ok(Health::Hung),
        }
    };
    // It may be in a wait that no signal ends; nobody waits for it.
    let _ = child.kill();
    stopped
}

/// The child's side: looks at a target on the host, and answers by its exit code.
///
/// # Errors
/// The host cannot be entered.
pub fn child(session: &Session, target: &Path) -> Result<u8> {
    let target = target.to_owned();
    let seen = session.host.run("looking at a mount", move || {
        statx(
            CWD,
            &target,
            AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT,
            StatxFlags::BASIC_STATS,
        )
    })?;
    // Only an answer is an answer, whatever the error.
    Ok(if seen.is_ok() { LOOK_OK } else { LOOK_STALE })
}
