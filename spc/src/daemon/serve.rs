//! `spc serve`, the container's first process.
//!
//! The loop reaps orphaned processes, reconciles records with the mounts of the host, repairs dead
//! mounts, and logs the decisions of the shim.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
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
use crate::daemon::pod_release::PodRelease;
use crate::daemon::record_cache::RecordCache;
use crate::daemon::repair_scheduler::RepairScheduler;
use crate::daemon::{copies, event_listener, http};
use crate::error::{Error, Result, errno_text};
use crate::host::Settings;
use crate::host::redirect::{self, Redirect};
use crate::process::cancel::CancelToken;
use crate::process::{children, marks};
use crate::recovery::records::{load_record, reconcile_record};
use crate::recovery::{client_upkeep, services};
use crate::state::Session;
use crate::state::record::{Record, State};
use crate::{log, sys};

/// Delay before a failed operation is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Delay before a mount that another command is using is reconciled.
const LOCKED_RETRY: Duration = Duration::from_secs(1);

/// Delay between a change and the reconcile pass. Changes that follow within this time are handled
/// in the same pass.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Cooldown after a reconcile pass, as a multiple of the time that the pass took. While
/// thousands of mounts are being made, passes then take about a tenth of the time.
const COOLDOWN_FACTOR: u32 = 9;

/// Longest cooldown. Repairs do not wait for it: the scheduler watches each daemon by a pidfd.
const MAX_COOLDOWN: Duration = Duration::from_secs(2);

/// Number of the shim's reports that are read at once.
const MAX_REPORTS: usize = 256;

/// Number of mounts that are reconciled in one pass.
const MAX_PER_PASS: usize = 256;

/// Interval of reconcile passes without a change. Such a pass finds what a command that died left,
/// for which there is no event.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT. Mounts stay mounted. Serves metrics at these addresses, and
/// what `start` starts, which is dropped at the end.
///
/// # Errors
/// Signals cannot be watched, a thread cannot be started, or poll(2) fails.
pub fn serve<T>(
    metrics_addresses: Vec<http::Address>,
    start: impl FnOnce() -> Result<T>,
) -> Result<()> {
    sys::return_large_buffers();
    let system = |what: &str, e: std::io::Error| Error::system(what.to_owned()).because(e);
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    let signals = set
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|e| system("cannot watch for signals", e.into()))?;
    // With --pid=host this process is not PID 1. As a subreaper it still reaps orphaned
    // descendants.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| system("cannot become a subreaper", e.into()))?;
    let reports = bind_report_socket();
    let metrics = Arc::new(Metrics::new()?);
    event_listener::listen(Arc::clone(&metrics))?;
    for address in metrics_addresses {
        http::serve(address, Arc::clone(&metrics))?;
    }
    let _started = start()?;
    let mut reconciler = Reconciler::default();
    loop {
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        if let Some(reports) = &reports {
            fds.push(PollFd::new(reports, PollFlags::IN));
        }
        let first_of_host = fds.len();
        if let Some(host) = &reconciler.host {
            fds.push(PollFd::new(&host.repairs, PollFlags::IN));
            if !reconciler.change_pending {
                fds.push(PollFd::new(&host.records, PollFlags::IN));
                // procfs reports a change of the mount table as POLLPRI (proc_pid_mounts(5)).
                fds.push(PollFd::new(&host.mount_table, PollFlags::PRI));
            }
        }
        let timeout = Timespec::try_from(reconciler.time_left()).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system("cannot wait for events", error.into())),
        }
        // The first one is that of the repairs, which are run below in any case.
        let mut changes = fds.iter().skip(first_of_host + 1);
        let changed = changes.any(|fd| !fd.revents().is_empty());
        drop(fds);
        if changed {
            reconciler.change_seen();
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                let _none_starts = children::hold();
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    reconciler.child_ended(pid.as_raw_nonzero().get(), status.exit_status());
                }
            } else {
                tracing::info!("stopping; mounts stay mounted");
                services::shut_down();
                reconciler.shut_down();
                return Ok(());
            }
        }
        if let Some(reports) = &reports {
            for line in read_reports(reports) {
                reconciler.handle_report(&line);
            }
        }
        reconciler.run_due();
        metrics.heartbeat(reconciler.host.is_some());
    }
}

/// Binds the socket in the container to which the shim reports. An error is logged.
fn bind_report_socket() -> Option<UnixDatagram> {
    let path = Settings::read().ok()?.report()?;
    // A socket left by an earlier start cannot be bound again.
    let _ = std::fs::remove_file(&path);
    match UnixDatagram::bind(&path).and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
    {
        Ok(socket) => Some(socket),
        // The shim in a container that cannot be written has nothing to report: no placeholder can
        // be made there, and daemons run on the host.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %errno_text(error), "cannot create the socket for the shim's reports; they are not logged");
            None
        }
    }
}

/// Reads the reports that are waiting in the socket, 256 at most.
fn read_reports(socket: &UnixDatagram) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    // More wait for the next round.
    while lines.len() < MAX_REPORTS
        && let Ok(length) = socket.recv(&mut buffer)
    {
        let line = String::from_utf8_lossy(&buffer[..length]);
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Returns the value of a field of a report, which is a line of `KEY=VALUE` separated by spaces.
fn field<'a>(report: &'a str, key: &str) -> Option<&'a str> {
    let mut fields = report.split(' ');
    fields.find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

/// Returns the id in mountinfo of the mount that a redirected call made on the host.
fn redirected_mount(report: &str) -> Option<u64> {
    let id = field(report, "mount")?.parse().ok()?;
    (field(report, "decision")? == "carried" && id != 0).then_some(id)
}

/// Watches over the host, once it can be reached.
struct HostWatch {
    session: Session,
    /// Id of the client root that mounts of this container use. `spc serve` keeps it while it runs.
    own_roots: Vec<String>,
    records: RecordCache,
    /// `mountinfo` of the host's mount namespace.
    mount_table: File,
    repairs: RepairScheduler,
    pods: PodRelease,
}

impl HostWatch {
    /// Reads the changed records and passes them to the repair scheduler.
    fn read_changes(&mut self) -> Result<()> {
        let repairs = &mut self.repairs;
        let update = |name, record: Option<&Record>| repairs.update_record(name, record);
        self.records.read(&self.session, update)
    }
}

/// Decides when reconcile passes run.
#[derive(Default)]
struct Reconciler {
    /// `None` until the host could be reached.
    host: Option<HostWatch>,
    /// Whether the first error of reaching the host was logged.
    warned: bool,
    /// Time of the next pass; `None` means now.
    next_pass: Option<Instant>,
    /// A pass for a change does not run before this time.
    cooldown_end: Option<Instant>,
    /// Whether the next pass is for a change. Changes until then need not be watched.
    change_pending: bool,
}

impl Reconciler {
    /// Returns the time until the next pass or repair.
    fn time_left(&self) -> Duration {
        let repairs = self.host.as_ref().and_then(|host| host.repairs.due());
        match self.next_pass {
            Some(at) => repairs
                .map_or(at, |due| due.min(at))
                .saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        }
    }

    /// Handles the end of a child, which may be a repair.
    fn child_ended(&mut self, pid: i32, code: Option<i32>) {
        if let Some(host) = &mut self.host
            && host.repairs.child_ended(pid, code)
        {
            // A copy of the new mount may have propagated into the container.
            self.next_pass = None;
        }
    }

    /// Schedules a pass after the debounce time and the cooldown.
    fn change_seen(&mut self) {
        let due = Instant::now() + DEBOUNCE;
        let due = self.cooldown_end.map_or(due, |end| end.max(due));
        self.next_pass = self.next_pass.map(|next| next.min(due));
        self.change_pending = true;
    }

    /// Logs a report of the shim. Detaches copies of a mount that was made without the launcher,
    /// which does so for its own mounts.
    fn handle_report(&mut self, report: &str) {
        let request = self.request_of(report).map(display);
        if report.contains("decision=failed") {
            tracing::warn!(request, "shim: {report}");
        } else {
            tracing::debug!(request, "shim: {report}");
        }
        if let (Some(id), Some(host)) = (redirected_mount(report), &self.host) {
            // A report has no unique id of the mount.
            copies::drop_copies_of(&host.session, &[(id, 0)]);
        }
    }

    /// Returns the request id of a report: that of the process, or, if that has ended, that of the
    /// mount whose placeholder was the target.
    fn request_of(&mut self, report: &str) -> Option<String> {
        let process = field(report, "pid").and_then(|pid| pid.parse().ok());
        let variable = process.and_then(|pid| marks::variable_of(pid, log::VARIABLE));
        if let Some(request) = variable.and_then(|id| log::valid_id(&id)) {
            return Some(request);
        }
        let id = Path::new(field(report, "target")?).file_name()?.to_str()?;
        let host = self.host.as_mut()?;
        if host.records.request(id).is_none() {
            // The record may be newer than the last pass.
            host.read_changes().ok()?;
            self.change_seen();
        }
        let records = &self.host.as_ref()?.records;
        records.request(id).map(str::to_owned)
    }

    /// Removes the client root of this container if nothing else uses it.
    fn shut_down(&self) {
        if let Some(HostWatch { session, .. }) = &self.host
            && let Err(error) = root::collect_garbage(session, &[])
        {
            tracing::warn!("{error}");
        }
    }

    /// Runs the repairs and the reconcile pass that are due.
    fn run_due(&mut self) {
        if let Some(host) = &mut self.host {
            host.repairs.run_due();
        }
        if self.next_pass.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.host.is_none() {
            match HostWatch::open() {
                Ok(host) => {
                    tracing::info!(host = %host.session.host.namespace().display(), "serving");
                    remove_orphaned_redirects(&host.session);
                    self.host = Some(host);
                }
                Err(error) => {
                    if !self.warned {
                        tracing::error!("{error}");
                    }
                    self.warned = true;
                    self.next_pass = Some(Instant::now() + RETRY_INTERVAL);
                    return;
                }
            }
        }
        let Some(host) = &mut self.host else { return };
        let mut work_time = Duration::ZERO;
        let wait = host.reconcile(&mut work_time).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            RETRY_INTERVAL
        });
        let cooldown = work_time.saturating_mul(COOLDOWN_FACTOR).min(MAX_COOLDOWN);
        self.cooldown_end = Some(Instant::now() + cooldown);
        self.next_pass = Some(Instant::now() + wait.max(cooldown));
        self.change_pending = false;
    }
}

impl HostWatch {
    /// Connects to the host and begins to watch its mounts and the ledger.
    fn open() -> Result<Self> {
        let session = Session::open()?;
        let path = session.host.mount_table();
        let mount_table = File::open(&path)
            .map_err(|e| Error::system(format!("cannot watch {}", path.display())).because(e))?;
        let own_roots = root::own_id().into_iter().collect();
        Ok(Self {
            repairs: RepairScheduler::new()?,
            pods: PodRelease::default(),
            records: RecordCache::new(&session)?,
            session,
            own_roots,
            mount_table,
        })
    }

    /// Runs a reconcile pass: removes records of mounts that the host no longer has, cleans up
    /// after commands that died, and removes unused files and services.
    ///
    /// Returns the time until the next pass, if no change comes before. Adds to `work_time` the
    /// time that the pass took, without that of waiting for processes to end.
    fn reconcile(&mut self, work_time: &mut Duration) -> Result<Duration> {
        let started = Instant::now();
        self.read_changes()?;
        self.repairs.find_daemons();
        self.pods.start_if_due(&self.repairs);
        let Self {
            session,
            own_roots,
            records,
            ..
        } = self;
        copies::drop_copies_of(session, &records.take_new_mounts());
        let (mut names, mut open) = (records.to_reconcile(session)?, Vec::new());
        let more = names.len() > MAX_PER_PASS;
        names.truncate(MAX_PER_PASS);
        session
            .ledger
            .read(&names, |_, read| open.extend(read.ok().flatten()))?;
        let mut complete = client_upkeep::run_all(session, &open);
        *work_time += started.elapsed();
        let result = reconcile_open(session, &open)?;
        let started = Instant::now();
        complete &= result.complete & detach::collect_garbage(session)?;
        session
            .ledger
            .remove_orphans(&records.unfinished(), &records.unreadable())?;
        root::collect_garbage(session, own_roots)?;
        complete &= services::reconcile(session);
        *work_time += started.elapsed();
        let locked = result.locked || more || !records.unfinished().is_empty();
        Ok(match (locked, complete) {
            (true, _) => LOCKED_RETRY,
            (false, false) => RETRY_INTERVAL,
            (false, true) => IDLE_INTERVAL,
        })
    }
}

/// Result of reconciling several records.
struct ReconcileResult {
    /// Whether another command holds the lock of at least one target.
    locked: bool,
    /// Whether all other records were reconciled without an error.
    complete: bool,
}

/// Reconciles records whose mounts are incomplete or missing on the host.
fn reconcile_open(session: &Session, open: &[Record]) -> Result<ReconcileResult> {
    let mut result = ReconcileResult {
        locked: false,
        complete: true,
    };
    for record in open {
        // The command that holds the lock completes the record itself.
        let target = Path::new(&record.target);
        let Ok(_lock) = session.ledger.lock(target, CancelToken::at(Instant::now())) else {
            result.locked = true;
            continue;
        };
        // The record may have changed before the lock was taken.
        if let Some(record) = load_record(session, target)? {
            match reconcile_record(session, &record) {
                Ok(Some(_)) => {}
                Ok(None) if record.state == State::Mounted => {
                    tracing::info!(target = %record.target, request = %record.request_id, "unmounted on the host; record removed");
                }
                Ok(None) => {
                    tracing::info!(target = %record.target, request = %record.request_id, "cleaned up after a command that died");
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    result.complete = false;
                }
            }
        }
    }
    Ok(result)
}

/// Removes redirects that an earlier run of this container left and no record names.
fn remove_orphaned_redirects(session: &Session) {
    let redirects = session.host.settings().redirects();
    // The redirects are listed first. A record is written before its redirect, so a mount that
    // begins now is left alone.
    let mut ids: BTreeSet<String> = redirect::ids(&redirects).into_iter().collect();
    let checked = session.ledger.has(|record| {
        ids.remove(&record.id);
        ids.is_empty()
    });
    if checked.is_ok() {
        for id in ids {
            Redirect::with_id(&redirects, &id).remove_or_warn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_mount_id_only_if_the_call_was_redirected() {
        let report = |decision: &str, mount: &str| {
            format!(
                "decision={decision} call=mount type=nfs target=/mnt host=/mnt errno=0 mount={mount} step=- reason=type pid=7"
            )
        };
        assert_eq!(redirected_mount(&report("carried", "123")), Some(123));
        assert_eq!(redirected_mount(&report("carried", "0")), None);
        assert_eq!(redirected_mount(&report("carried", "-")), None);
        assert_eq!(redirected_mount(&report("passed", "123")), None);
    }
}
