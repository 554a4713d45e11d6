//! Worker process of one call of kubelet. The parent process replies even if the worker crashes.

use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{Error, Result};
use crate::process::interrupts::Interrupts;
use crate::process::output::Output;
use crate::process::{children, memfd};
use crate::{log, sys};

/// Time that a worker has beyond the limit of a mount, to roll back a failed one.
pub const ROLLBACK_TIME: Duration = Duration::from_secs(20);

/// Time that a worker has to roll back after SIGTERM, before SIGKILL.
const TERM_TIME: Duration = Duration::from_secs(12);

/// Program of the worker: the same executable.
const WORKER: &str = "/proc/self/exe";

/// Call for a worker process.
#[derive(Debug)]
pub struct WorkerCall<'a> {
    /// Arguments of `spc`.
    pub words: &'a [&'a str],
    /// Standard input, in memory, where no other process sees it.
    pub input: &'a str,
    /// Time limit of the worker.
    pub limit: Duration,
    /// Whether the worker logs where this process does. Otherwise its last lines are in the error.
    pub logs_here: bool,
}

/// End of a worker process.
#[derive(Debug)]
pub struct WorkerEnd {
    /// Standard output.
    pub stdout: String,
    /// Reason why this process stopped the worker, if it did.
    stopped: Option<String>,
    /// Status, unless another thread has read it.
    status: Option<ExitStatus>,
    /// Last lines of its log, unless it logs where this process does.
    log: Vec<String>,
}

impl WorkerEnd {
    /// Returns the error for a worker that printed no reply.
    pub fn no_reply(self) -> Error {
        let failed = Error::system("the call was not answered");
        let ended = self.status.map(|status| (status.code(), status.signal()));
        let failed = match (self.stopped, ended) {
            (Some(why), _) => failed.because(why),
            (None, Some((Some(code), _))) => failed.because(format!("exit status {code}")),
            (None, ended) => failed
                .because(match ended {
                    Some((_, Some(signal))) => format!("killed by signal {signal}"),
                    _ => "its process has ended".into(),
                })
                .hint(
                    "kubelet tries again, and spc then rolls back what is left; if memory was \
                     short, dmesg says so",
                ),
        };
        failed.log(self.log)
    }
}

/// Runs a worker process to its end. A signal in `interrupts` stops it.
///
/// The kernel kills the worker when the calling thread ends.
///
/// # Errors
/// The worker cannot be started or waited for.
pub fn run(call: &WorkerCall<'_>, interrupts: Option<&Interrupts>) -> Result<WorkerEnd> {
    let fail = |e: std::io::Error| Error::system("cannot start the worker of this call").because(e);
    let stdout = Output::new().map_err(fail)?;
    let stderr = if call.logs_here {
        None
    } else {
        Some(Output::new().map_err(fail)?)
    };
    let mut command = Command::new(WORKER);
    command
        .arg0("spc")
        .args(call.words)
        .stdin(memfd::create("volume", call.input.as_bytes()).map_err(fail)?)
        .stdout(stdout.handle().map_err(fail)?)
        .stderr(match &stderr {
            Some(stderr) => Stdio::from(stderr.handle().map_err(fail)?),
            None => Stdio::inherit(),
        });
    log::pass_request(&mut command);
    // Descriptors that kubelet left open do not reach the worker.
    sys::tie_to_parent(sys::keep_standard_fds(&mut command));
    let (mut child, pidfd) = {
        let _not_reaped = children::hold();
        let child = command.spawn().map_err(fail)?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        (child, pidfd.map_err(|e| fail(e.into()))?)
    };
    let (status, stopped) = wait(&mut child, &pidfd, call.limit, interrupts).map_err(fail)?;
    let lines = stderr.map(|stderr| stderr.last_lines(|line| Some(line)));
    Ok(WorkerEnd {
        stdout: stdout.text(),
        stopped,
        status,
        log: lines.unwrap_or_default(),
    })
}

/// Waits for the worker to end. Returns its status, and the reason if spc stopped it.
///
/// A worker that exceeds `limit`, or whose call was interrupted, gets SIGTERM and time to roll
/// back, then SIGKILL. If it is blocked in the kernel, it is abandoned and has no status.
fn wait(
    child: &mut Child,
    pidfd: &OwnedFd,
    limit: Duration,
    interrupts: Option<&Interrupts>,
) -> std::io::Result<(Option<ExitStatus>, Option<String>)> {
    let pid = Pid::from_child(child);
    let mut deadline = Instant::now() + limit;
    let (mut stopped, mut killed) = (None, false);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        if let Some(interrupts) = interrupts.filter(|_| stopped.is_none()) {
            fds.push(PollFd::new(interrupts, PollFlags::IN));
        }
        match poll(
            &mut fds,
            Some(&Timespec::try_from(left).unwrap_or_default()),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            // The loop of `spc serve` may have reaped the worker.
            return Ok((child.try_wait().ok().flatten(), stopped));
        }
        let is_late = Instant::now() >= deadline;
        let interrupted = interrupts.map_or(Ok(()), Interrupts::check);
        let signal = match (interrupted, &stopped) {
            (Err(interrupted), None) => {
                stopped = Some(interrupted.summary());
                Signal::TERM
            }
            (_, None) if is_late => {
                stopped = Some(format!("took longer than {} s", limit.as_secs()));
                Signal::TERM
            }
            (_, Some(_)) if is_late && killed => return Ok((None, stopped)),
            (_, Some(_)) if is_late => {
                killed = true;
                Signal::KILL
            }
            _ => continue,
        };
        deadline = Instant::now() + TERM_TIME;
        // Fails if the worker has just ended by itself.
        let _ = kill_process_group(pid, signal);
    }
}
