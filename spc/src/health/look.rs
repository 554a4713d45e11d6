//! The state of a mount, found without ever waiting for it: looks are made by a process of their own, each by a thread,
//! and what hangs is left behind.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::Serialize;

use crate::error::{Error, Result, errno_text};
use crate::host::errand::{Answer, Errand};
use crate::mount::ledger::{Record, State};
use crate::mount::mounter::Session;
use crate::mount::presence::entries_of;

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(2);

/// How many looks wait at once. One that has hung for its limit is not counted any more.
const AT_ONCE: usize = 256;

/// What a thread that only waits needs.
const STACK: usize = 64 * 1024;

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

    /// What the process that looks says of one that it looked at.
    fn said(word: &str) -> Option<Self> {
        let known = [Self::Ok, Self::Stale, Self::Hung];
        known.into_iter().find(|health| health.word() == word)
    }
}

/// The states of these mounts, in their order. It takes two seconds for each 256 that hang, and no longer.
///
/// # Errors
/// The host's mount table cannot be read, or no look can be started.
pub fn states(session: &Session, records: &[Record]) -> Result<Vec<Health>> {
    let entries = entries_of(session, records)?;
    let mut states = vec![Health::Busy; records.len()];
    let (mut asked, mut targets) = (Vec::new(), Vec::new());
    for (at, (record, entry)) in records.iter().zip(entries).enumerate() {
        match entry {
            _ if record.state != State::Mounted => {}
            None => states[at] = Health::Gone,
            Some(entry) => {
                asked.push(at);
                targets.push(entry.target);
            }
        }
    }
    let looks = look(&targets, LIMIT, || Ok(()))?;
    for (at, health) in asked.into_iter().zip(looks) {
        states[at] = health;
    }
    Ok(states)
}

/// The state of the mount on a target that is known to be there, until `deadline`, or until `go_on` fails,
/// which is asked all the while.
///
/// # Errors
/// Whatever `go_on` says, or the look cannot be started.
pub fn at(target: &str, deadline: Instant, go_on: impl Fn() -> Result<()>) -> Result<Health> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match look(&[PathBuf::from(target)], left, &go_on)?.first() {
            // It may be the look that failed, at once: then not as fast as that can be.
            Some(Health::Hung) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            health => return Ok(health.copied().unwrap_or(Health::Hung)),
        }
    }
}

/// Looks at paths of the host, at each for so long.
fn look(
    targets: &[PathBuf],
    limit: Duration,
    go_on: impl Fn() -> Result<()>,
) -> Result<Vec<Health>> {
    let mut states = vec![Health::Hung; targets.len()];
    if targets.is_empty() {
        return Ok(states);
    }
    let mut input = Vec::new();
    for target in targets {
        input.extend(target.as_os_str().as_bytes());
        input.push(0);
    }
    let milliseconds = limit.as_millis().to_string();
    let mut errand = Errand::send(&["look", &milliseconds], &input)?;
    // It keeps the limit itself; this one is for one that does not even do that.
    let rounds = u32::try_from(targets.len() / AT_ONCE + 1).unwrap_or(u32::MAX);
    let deadline = Instant::now() + limit.saturating_mul(rounds) + Duration::from_secs(1);
    let mut open = targets.len();
    while open > 0 {
        let Answer::Line(line) = errand.line(deadline, &go_on)? else {
            break;
        };
        let answer = line.split_once(' ');
        let answer = answer.and_then(|(at, word)| Some((at.parse().ok()?, Health::said(word)?)));
        if let Some((at, health)) = answer
            && let Some(state) = states.get_mut::<usize>(at)
        {
            *state = health;
            open -= 1;
        }
    }
    Ok(states)
}

/// The other side: looks at targets of the host, which it reads from standard input, each ended by a NUL, and says for
/// each its number and state.
///
/// # Errors
/// The host cannot be entered, or nobody listens.
pub fn child(session: &Session, limit: Duration) -> Result<()> {
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    read.map_err(|e| Error::system("cannot read the targets").because(errno_text(e)))?;
    let targets = input
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty());
    let (said, answers) = channel();
    let mut looks = Looks {
        limit,
        answers,
        open: VecDeque::new(),
    };
    for (number, target) in targets.enumerate() {
        while looks.open.len() >= AT_ONCE {
            looks.take()?;
        }
        let target = PathBuf::from(OsStr::from_bytes(target));
        loop {
            let (target, said) = (target.clone(), said.clone());
            // Threads that the host's thread starts are in its namespace.
            let start = move || start(number, target, said);
            match session.host.run("starting a look", start)? {
                Ok(()) => break,
                // There may be no more of them: one that has answered makes room.
                Err(_) if !looks.open.is_empty() => looks.take()?,
                Err(error) => {
                    return Err(Error::system("cannot start a thread").because(errno_text(error)));
                }
            }
        }
        looks.open.push_back((number, Instant::now()));
    }
    while !looks.open.is_empty() {
        looks.take()?;
    }
    Ok(())
}

/// The looks that have not answered, the oldest first.
struct Looks {
    limit: Duration,
    answers: Receiver<(usize, Health)>,
    open: VecDeque<(usize, Instant)>,
}

impl Looks {
    /// Waits for the next answer, or until the oldest look has had its time, and passes it on.
    fn take(&mut self) -> Result<()> {
        let Some((oldest, since)) = self.open.front().copied() else {
            return Ok(());
        };
        let left = self.limit.saturating_sub(since.elapsed());
        let (number, health) = self
            .answers
            .recv_timeout(left)
            .unwrap_or((oldest, Health::Hung));
        let open = self.open.iter().position(|(open, _)| *open == number);
        // One that answers when its time was over has been told of.
        if let Some(at) = open {
            self.open.remove(at);
            let line = format!("{number} {}\n", health.word());
            let told = std::io::stdout().write_all(line.as_bytes());
            told.map_err(|e| Error::system("cannot write to stdout").because(errno_text(e)))?;
        }
        Ok(())
    }
}

fn start(number: usize, target: PathBuf, said: Sender<(usize, Health)>) -> std::io::Result<()> {
    let look = move || {
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
        let seen = statx(CWD, &target, flags, StatxFlags::BASIC_STATS);
        // Only an answer is an answer, whatever the error.
        let health = if seen.is_ok() {
            Health::Ok
        } else {
            Health::Stale
        };
        // Nobody listens to one that comes too late.
        let _ = said.send((number, health));
    };
    let thread = std::thread::Builder::new().stack_size(STACK);
    thread.spawn(look).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_too_late_does_not_count() {
        let (said, answers) = channel();
        let mut looks = Looks {
            limit: Duration::from_millis(10),
            answers,
            open: VecDeque::from([(0, Instant::now()), (1, Instant::now())]),
        };
        said.send((1, Health::Ok)).unwrap();
        looks.take().unwrap();
        assert_eq!(looks.open.len(), 1);
        looks.take().unwrap();
        assert!(looks.open.is_empty(), "the first has had its time");
        looks.open.push_back((2, Instant::now()));
        said.send((0, Health::Ok)).unwrap();
        looks.take().unwrap();
        assert_eq!(looks.open.front().map(|(number, _)| *number), Some(2));
    }

    #[test]
    fn what_is_said_is_understood() {
        for health in [Health::Ok, Health::Stale, Health::Hung] {
            assert_eq!(Health::said(health.word()), Some(health));
        }
        assert_eq!(Health::said("gone"), None);
    }
}
