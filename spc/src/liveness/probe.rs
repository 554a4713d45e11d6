//! The state of a mount, found without ever waiting for it: looks are made by a process of their own, each by a thread,
//! and what hangs is left behind. At each mount one thread of the whole host waits, and the others go by that.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::liveness::waiter_lock::WaiterLock;
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::Session;
use crate::state::presence::entries_of;
use crate::state::record::{Record, State};

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(2);

/// How many looks wait at once. One that has hung for its limit is not counted any more.
const AT_ONCE: usize = 256;

/// How often to see whether another look has come to its end.
const AGAIN: Duration = Duration::from_millis(20);

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
pub fn probe_all(session: &Session, records: &[Record]) -> Result<Vec<Health>> {
    let entries = entries_of(session, records)?;
    let mut states = vec![Health::Busy; records.len()];
    let (mut asked, mut targets) = (Vec::new(), Vec::new());
    for (at, (record, entry)) in records.iter().zip(entries).enumerate() {
        match entry {
            _ if record.state != State::Mounted => {}
            None => states[at] = Health::Gone,
            Some(entry) => {
                asked.push(at);
                targets.push(ProbeTarget {
                    target: entry.target,
                    mount: key(record),
                });
            }
        }
    }
    let looks = look(&targets, LIMIT, CancelToken::at(Instant::now() + LIMIT))?;
    for (at, health) in asked.into_iter().zip(looks) {
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

/// A mount to look at.
pub struct ProbeTarget {
    /// A path at which the host has it.
    pub target: PathBuf,
    /// By what [`Lone`] knows it.
    pub mount: u64,
}

/// A process that looks as soon as it is told where.
pub struct PrestartedProbe(Subprocess);

/// Has one begin, for a look that may take until `deadline`.
///
/// # Errors
/// It cannot be started.
pub fn prestart(deadline: Instant) -> Result<PrestartedProbe> {
    let limit = deadline.saturating_duration_since(Instant::now());
    Subprocess::spawn_waiting(&words(limit)).map(PrestartedProbe)
}

/// The state of a mount that is known to be there, until `cancel` ends the wait.
///
/// # Errors
/// The wait is cancelled, or the look cannot be started.
pub fn probe(
    looked: &ProbeTarget,
    mut ahead: Option<PrestartedProbe>,
    cancel: CancelToken<'_>,
) -> Result<Health> {
    let one = std::slice::from_ref(looked);
    loop {
        let left = cancel.remaining();
        let states = match ahead.take() {
            Some(PrestartedProbe(mut child)) => {
                child.send_input(&input(one));
                answers(child, 1, left, cancel)?
            }
            None => look(one, left, cancel)?,
        };
        match states.first() {
            // It may be the look that failed, at once: then not as fast as that can be.
            Some(Health::Hung) if !cancel.is_expired() => {
                std::thread::sleep(Duration::from_millis(100));
            }
            health => return Ok(health.copied().unwrap_or(Health::Hung)),
        }
    }
}

/// Looks at mounts, at each for so long.
fn look(targets: &[ProbeTarget], limit: Duration, cancel: CancelToken<'_>) -> Result<Vec<Health>> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let child = Subprocess::spawn_detached(&words(limit), &input(targets))?;
    answers(child, targets.len(), limit, cancel)
}

fn words(limit: Duration) -> [String; 2] {
    ["look".into(), limit.as_millis().to_string()]
}

fn input(targets: &[ProbeTarget]) -> Vec<u8> {
    let mut input = Vec::new();
    for ProbeTarget { target, mount } in targets {
        input.extend(mount.to_string().into_bytes());
        input.push(b' ');
        input.extend(target.as_os_str().as_bytes());
        input.push(0);
    }
    input
}

/// What is said of so many mounts.
fn answers(
    mut child: Subprocess,
    count: usize,
    limit: Duration,
    cancel: CancelToken<'_>,
) -> Result<Vec<Health>> {
    let mut states = vec![Health::Hung; count];
    // It keeps the limit itself; this one is for one that does not even do that.
    let rounds = u32::try_from(count / AT_ONCE + 1).unwrap_or(u32::MAX);
    let deadline = Instant::now() + limit.saturating_mul(rounds) + Duration::from_secs(1);
    let mut open = count;
    while open > 0 {
        let Reply::Line(line) = child.line(cancel.with_deadline(deadline))? else {
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

/// The other side: looks at mounts of the host, which it reads from standard input as the number and a path of each, ended by
/// a NUL, and says for each its place among them and its state.
///
/// # Errors
/// The host cannot be entered, or nobody listens.
pub fn child(session: &Session, limit: Duration) -> Result<()> {
    let waiter = Arc::new(WaiterLock::open(&session.host)?);
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    read.map_err(|e| Error::system("cannot read the targets").because(e))?;
    let (said, answers) = channel();
    let mut looks = ProbeRun {
        session,
        waiter,
        limit,
        said,
        answers,
        open: Vec::new(),
        hung: Vec::new(),
    };
    let looked = input
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty());
    let done = looks.all(looked);
    // What has not been told of is not known to hang.
    for open in &looks.open {
        looks.waiter.leave(open.mount);
    }
    done
}

/// A look that has no answer.
struct Open {
    number: usize,
    mount: u64,
    since: Instant,
    /// What to look at, as soon as another has left it.
    held: Option<PathBuf>,
}

/// The looks that have not answered.
struct ProbeRun<'a> {
    session: &'a Session,
    waiter: Arc<WaiterLock>,
    limit: Duration,
    said: Sender<(usize, Health)>,
    answers: Receiver<(usize, Health)>,
    open: Vec<Open>,
    /// Those that were told of as hung; they may answer still.
    hung: Vec<Open>,
}

impl ProbeRun<'_> {
    fn all<'a>(&mut self, looked: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        for (number, line) in looked.enumerate() {
            while self.open.len() >= AT_ONCE {
                self.take()?;
            }
            let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let mount = std::str::from_utf8(&line[..end]).ok();
            let mount = mount.and_then(|mount| mount.parse().ok());
            let target = PathBuf::from(OsStr::from_bytes(&line[end + 1..]));
            let open = Open {
                number,
                mount: mount.ok_or_else(|| Error::usage("a target without a mount"))?,
                since: Instant::now(),
                held: None,
            };
            self.begin(open, target)?;
        }
        while !self.open.is_empty() {
            self.take()?;
        }
        Ok(())
    }

    /// Looks, unless another does.
    fn begin(&mut self, mut open: Open, target: PathBuf) -> Result<()> {
        let cannot = |what: &str, e| Error::system(what.to_owned()).because(e);
        let held = self.waiter.take(open.mount);
        match held.map_err(|e| cannot("cannot see who waits for a mount", e))? {
            Some(since) if since >= self.limit => return tell(open.number, Health::Hung),
            Some(_) => {
                open.held = Some(target);
                self.open.push(open);
                return Ok(());
            }
            None => {}
        }
        let number = open.number;
        self.open.push(open);
        loop {
            let (target, said) = (target.clone(), self.said.clone());
            let waiter = Arc::clone(&self.waiter);
            // Threads that the host's thread starts are in its namespace.
            let start = move || start(number, target, said, waiter);
            match self.session.host.run("starting a look", start)? {
                Ok(()) => return Ok(()),
                // There may be no more of them: one that has answered makes room.
                Err(_) if self.open.len() > 1 => self.take()?,
                Err(error) => return Err(cannot("cannot start a thread", error)),
            }
        }
    }

    /// Waits for the next answer, or until the oldest look has had its time, and passes it on.
    fn take(&mut self) -> Result<()> {
        let Some(oldest) = self.open.iter().min_by_key(|open| open.since) else {
            return Ok(());
        };
        let (oldest, left) = (
            oldest.number,
            self.limit.saturating_sub(oldest.since.elapsed()),
        );
        let others = self.open.iter().any(|open| open.held.is_some());
        let wait = if others { left.min(AGAIN) } else { left };
        let (number, health) = match self.answers.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(_) if wait < left => return self.try_held(),
            Err(_) => (oldest, Health::Hung),
        };
        let of = |open: &Open| open.number == number;
        if let Some(at) = self.hung.iter().position(of) {
            // It has been told of, but others need not go by that any more.
            self.waiter.leave(self.hung.swap_remove(at).mount);
        }
        if let Some(at) = self.open.iter().position(of) {
            let open = self.open.swap_remove(at);
            match health {
                Health::Hung => self.hung.push(open),
                _ => self.waiter.leave(open.mount),
            }
            tell(number, health)?;
        }
        Ok(())
    }

    /// Looks at what another looked at, if that has got its answer.
    fn try_held(&mut self) -> Result<()> {
        let held = self.open.extract_if(.., |open| open.held.is_some());
        for mut open in held.collect::<Vec<_>>() {
            if let Some(target) = open.held.take() {
                self.begin(open, target)?;
            }
        }
        Ok(())
    }
}

fn tell(number: usize, health: Health) -> Result<()> {
    let line = format!("{number} {}\n", health.word());
    let told = std::io::stdout().write_all(line.as_bytes());
    told.map_err(|e| Error::system("cannot write to stdout").because(e))
}

fn start(
    number: usize,
    target: PathBuf,
    said: Sender<(usize, Health)>,
    waiter: Arc<WaiterLock>,
) -> std::io::Result<()> {
    let look = move || {
        // Whoever comes later goes by it, for as long as this hangs.
        let _held = waiter;
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
    fn what_is_said_is_understood() {
        for health in [Health::Ok, Health::Stale, Health::Hung] {
            assert_eq!(Health::said(health.word()), Some(health));
        }
        assert_eq!(Health::said("gone"), None);
    }
}
