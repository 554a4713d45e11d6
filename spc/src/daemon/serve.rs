//! `spc serve`: the container's first process. It reaps orphans, notices mounts that were taken
//! away on the host, and writes the shim's decisions to the log.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, set_child_subreaper, wait};
use tracing::field::display;

use crate::block::detach;
use crate::client::root;
use crate::daemon::metrics::Metrics;
use crate::daemon::record_cache::RecordCache;
use crate::daemon::repair_scheduler::Repairs;
use crate::daemon::{copies, event_listener, http};
use crate::error::{Error, Result, errno_text};
use crate::host::Settings;
use crate::host::redirect::{self, Redirect};
use crate::process::cancel::CancelToken;
use crate::recovery::records::{known, reconcile_record};
use crate::recovery::{client_upkeep, services};
use crate::state::Session;
use crate::state::record::{Record, State};
use crate::{log, sys};

/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_secs(10);

/// How long to wait for a command that is at work on a mount.
const SOON: Duration = Duration::from_secs(1);

/// From a change to the look at what it was: few come alone.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// After a look, the next one waits so many times as long as it took, if it is only for a change: where there are thousands
/// of mounts, and more by the moment, most of the machine is left to those who make them.
const COOLDOWN_FACTOR: u32 = 9;

/// The longest such wait. Daemons that die are not waited for here: repairs hear of each by itself.
const LONGEST_EASE: Duration = Duration::from_secs(2);

/// How many mounts are seen to in one look.
const AT_ONCE: usize = 256;

/// How often to look for what a dead command left, which no event tells.
const IDLE: Duration = Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT. What is mounted stays mounted.
///
/// # Errors
/// Signals cannot be watched, or no thread can be started.
pub fn serve(shown: Option<http::Address>) -> Result<()> {
    sys::keep_no_buffers();
    let system = |what: &str, e: std::io::Error| Error::system(what.to_owned()).because(e);
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    let signals = set
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|e| system("cannot watch for signals", e.into()))?;
    // With --pid=host it is not PID 1, but daemons of its children still come to it.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| system("cannot become a subreaper", e.into()))?;
    let reports = listen();
    let metrics = Arc::new(Metrics::new()?);
    event_listener::listen(Arc::clone(&metrics))?;
    if let Some(address) = shown {
        http::serve(address, Arc::clone(&metrics))?;
    }
    let mut watch = Watch::default();
    loop {
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        if let Some(reports) = &reports {
            fds.push(PollFd::new(reports, PollFlags::IN));
        }
        let heard = fds.len();
        if let Some(on) = &watch.on {
            fds.push(PollFd::new(&on.repairs, PollFlags::IN));
            if !watch.knows {
                fds.push(PollFd::new(&on.known, PollFlags::IN));
                // procfs reports a change of the mount table as POLLPRI (proc_pid_mounts(5)).
                fds.push(PollFd::new(&on.mounts, PollFlags::PRI));
            }
        }
        let timeout = Timespec::try_from(watch.due()).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system("cannot wait for events", error.into())),
        }
        let mut changes = fds.iter().skip(heard + 1);
        let changed = changes.any(|fd| !fd.revents().is_empty());
        drop(fds);
        if changed {
            watch.changed();
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    watch.reaped(pid.as_raw_nonzero().get(), status.exit_status());
                }
            } else {
                tracing::info!("stopping; mounts stay");
                services::shut_down();
                watch.leave();
                return Ok(());
            }
        }
        if let Some(reports) = &reports {
            for line in read_reports(reports) {
                watch.heed(&line);
            }
        }
        watch.turn();
        metrics.heartbeat(watch.on.is_some());
    }
}

/// The socket that the shim reports to, in the container.
fn listen() -> Option<UnixDatagram> {
    let path = Settings::read().ok()?.report()?;
    // A socket left by an earlier start cannot be bound again.
    let _ = std::fs::remove_file(&path);
    match UnixDatagram::bind(&path).and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
    {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %errno_text(error), "the shim's reports will not be logged");
            None
        }
    }
}

fn read_reports(socket: &UnixDatagram) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = socket.recv(&mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// A field of a report of the shim.
fn field<'a>(report: &'a str, key: &str) -> Option<&'a str> {
    let mut fields = report.split(' ');
    fields.find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

/// The id of a mount that the shim made on the host, from its report.
fn carried_mount(report: &str) -> Option<u64> {
    let id = field(report, "mount")?.parse().ok()?;
    (field(report, "decision")? == "carried" && id != 0).then_some(id)
}

struct Watching {
    session: Session,
    /// The client root that mounts of this container use; it stays while the container runs.
    own: Vec<String>,
    known: RecordCache,
    mounts: File,
    repairs: Repairs,
}

impl Watching {
    /// Reads what has changed in the ledger.
    fn read(&mut self) -> Result<()> {
        let repairs = &mut self.repairs;
        let heed = |name, record: Option<&Record>| repairs.heed(name, record);
        self.known.read(&self.session, heed)
    }
}

/// The watch over the host's mounts and the ledger.
#[derive(Default)]
struct Watch {
    on: Option<Watching>,
    complained: bool,
    /// When to look; at once if there is none.
    next: Option<Instant>,
    /// A look for a change is not made before.
    ease: Option<Instant>,
    /// The next look is for a change: more of them make no difference.
    knows: bool,
}

impl Watch {
    fn due(&self) -> Duration {
        let repairs = self.on.as_ref().and_then(|on| on.repairs.due());
        match self.next {
            Some(at) => repairs
                .map_or(at, |due| due.min(at))
                .saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        }
    }

    fn reaped(&mut self, pid: i32, code: Option<i32>) {
        if let Some(on) = &mut self.on
            && on.repairs.reaped(pid, code)
        {
            // There may be a copy of the new mount in our own table.
            self.next = None;
        }
    }

    fn changed(&mut self) {
        let soon = Instant::now() + DEBOUNCE;
        let soon = self.ease.map_or(soon, |ease| ease.max(soon));
        self.next = self.next.map(|next| next.min(soon));
        self.knows = true;
    }

    /// A report is logged. A mount that somebody made without the launcher has its copies dropped, as the launcher
    /// does it for its own.
    fn heed(&mut self, report: &str) {
        let request = self.request_of(report).map(display);
        if report.contains("decision=failed") {
            tracing::warn!(request, "shim: {report}");
        } else {
            tracing::debug!(request, "shim: {report}");
        }
        if let (Some(id), Some(watching)) = (carried_mount(report), &self.on) {
            // The shim says no more.
            copies::drop_of(&watching.session, &[(id, 0)]);
        }
    }

    /// The request that a report belongs to: that of the process, or, if that has ended, of the mount whose stand-in it
    /// was about.
    fn request_of(&mut self, report: &str) -> Option<String> {
        let process = field(report, "pid").and_then(|pid| pid.parse().ok());
        if let Some(request) = process.and_then(log::request_of) {
            return Some(request);
        }
        let id = Path::new(field(report, "target")?).file_name()?.to_str()?;
        let watching = self.on.as_mut()?;
        if watching.known.request(id).is_none() {
            // Its record may be newer than the last look.
            watching.read().ok()?;
            self.changed();
        }
        let known = &self.on.as_ref()?.known;
        known.request(id).map(str::to_owned)
    }

    /// The container ends: what only it would have used goes.
    fn leave(&self) {
        if let Some(Watching { session, .. }) = &self.on
            && let Err(error) = root::collect_garbage(session, &[])
        {
            tracing::warn!("{error}");
        }
    }

    fn turn(&mut self) {
        if let Some(on) = &mut self.on {
            on.repairs.turn();
        }
        if self.next.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.on.is_none() {
            match begin() {
                Ok(watching) => {
                    tracing::info!(host = %watching.session.host.namespace().display(), "serving");
                    remove_orphans(&watching.session);
                    self.on = Some(watching);
                }
                Err(error) => {
                    if !self.complained {
                        tracing::error!("{error}");
                    }
                    self.complained = true;
                    self.next = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
        let Some(watching) = &mut self.on else { return };
        let mut worked = Duration::ZERO;
        let wait = collect_garbage(watching, &mut worked).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            RETRY
        });
        let ease = worked.saturating_mul(COOLDOWN_FACTOR).min(LONGEST_EASE);
        self.ease = Some(Instant::now() + ease);
        self.next = Some(Instant::now() + wait.max(ease));
        self.knows = false;
    }
}

fn begin() -> Result<Watching> {
    let session = Session::open()?;
    let path = session.host.mount_table();
    let mounts = File::open(&path)
        .map_err(|e| Error::system(format!("cannot watch {}", path.display())).because(e))?;
    let own = root::own().into_iter().collect();
    Ok(Watching {
        repairs: Repairs::begin()?,
        known: RecordCache::begin(&session)?,
        session,
        own,
        mounts,
    })
}

/// Forgets mounts that were taken away on the host, and undoes what a dead command left half made.
/// Gives back how long to wait until the next look, if no event comes before, and adds up how long was `worked`: all but
/// the time that processes were given to end.
fn collect_garbage(watching: &mut Watching, worked: &mut Duration) -> Result<Duration> {
    let begun = Instant::now();
    watching.read()?;
    watching.repairs.find();
    let Watching {
        session,
        own,
        known,
        ..
    } = watching;
    copies::drop_of(session, &known.made());
    let (mut names, mut open) = (known.open(session)?, Vec::new());
    let more = names.len() > AT_ONCE;
    names.truncate(AT_ONCE);
    session
        .ledger
        .read(&names, |_, read| open.extend(read.ok().flatten()))?;
    let mut done = client_upkeep::all(session, &open);
    *worked += begun.elapsed();
    let seen = reconcile_open(session, &open)?;
    let begun = Instant::now();
    done &= seen.done & detach::collect_garbage(session)?;
    session.ledger.sweep(&known.begun(), &known.bad())?;
    root::collect_garbage(session, own)?;
    done &= services::reconcile(session);
    *worked += begun.elapsed();
    let busy = seen.busy || more || !known.begun().is_empty();
    Ok(match (busy, done) {
        (true, _) => SOON,
        (false, false) => RETRY,
        (false, true) => IDLE,
    })
}

/// What became of mounts that were to be seen to.
struct Seen {
    /// Commands are at work on some.
    busy: bool,
    /// Nothing is left of the others.
    done: bool,
}

fn reconcile_open(session: &Session, open: &[Record]) -> Result<Seen> {
    let mut seen = Seen {
        busy: false,
        done: true,
    };
    for record in open {
        // Whoever is at work on it will see to it.
        let target = Path::new(&record.target);
        let Ok(_lock) = session.ledger.lock(target, CancelToken::at(Instant::now())) else {
            seen.busy = true;
            continue;
        };
        // It may have been mounted again before we had the lock.
        if let Some(record) = known(session, target)? {
            match reconcile_record(session, &record) {
                Ok(Some(_)) => {}
                Ok(None) if record.state == State::Mounted => {
                    tracing::info!(target = %record.target, request = %record.request_id, "unmounted on the host; forgotten");
                }
                Ok(None) => {
                    tracing::info!(target = %record.target, request = %record.request_id, "cleared away what a dead command left");
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    seen.done = false;
                }
            }
        }
    }
    Ok(seen)
}

/// Removes claims of an earlier life of this container that no record knows.
fn remove_orphans(session: &Session) {
    let redirects = session.host.settings().redirects();
    // In this order: a record is there before its claim, so a mount that begins now is left alone.
    let mut ids: BTreeSet<String> = redirect::ids(&redirects).into_iter().collect();
    let looked = session.ledger.has(|record| {
        ids.remove(&record.id);
        ids.is_empty()
    });
    if looked.is_ok() {
        for id in ids {
            Redirect::named(&redirects, &id).clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_carried_mount_has_an_id() {
        let report = |decision: &str, mount: &str| {
            format!(
                "decision={decision} call=mount type=nfs target=/mnt host=/mnt errno=0 mount={mount} step=- reason=type pid=7"
            )
        };
        assert_eq!(carried_mount(&report("carried", "123")), Some(123));
        assert_eq!(carried_mount(&report("carried", "0")), None);
        assert_eq!(carried_mount(&report("carried", "-")), None);
        assert_eq!(carried_mount(&report("passed", "123")), None);
    }
}
