//! Process that kubelet waits for. It starts the worker, and replies however the worker ends.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::call::Call;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;
use crate::process::interrupts::Interrupts;
use crate::process::memfd;
use crate::process::output::Output;
use crate::{log, sys};

/// Time that a worker has beyond the limit of the mount, to roll back a failed one.
const ROLLBACK_TIME: Duration = Duration::from_secs(20);

/// Time that a worker has to roll back after SIGTERM, before SIGKILL.
const TERM_TIME: Duration = Duration::from_secs(12);

/// Limit for `unmount` and `expandfs`.
const LIMIT: Duration = Duration::from_secs(100);

/// Program of the worker: the same executable.
const WORKER: &str = "/proc/self/exe";

/// Runs a call in a worker process, and returns its reply.
///
/// # Errors
/// The worker cannot be started, does not end in time, or ends without a reply.
pub fn run(call: &Call<'_>) -> Result<Reply> {
    let (words, json, limit) = match *call {
        Call::Answered(ref reply) => return Ok(reply.clone()),
        Call::Mount { dir, json } => (
            vec!["mount", dir],
            json,
            volume::timeout(json)? + ROLLBACK_TIME,
        ),
        Call::Unmount { dir } => (vec!["unmount", dir], "", LIMIT),
        Call::ExpandFs { dir, .. } => (vec!["expandfs", dir], "", LIMIT),
    };
    let size = match call {
        Call::ExpandFs { size, .. } => Some(size.to_string()),
        _ => None,
    };
    let fail = |e: std::io::Error| Error::system("cannot start the worker of this call").because(e);
    let interrupts = Interrupts::block()?;
    let (stderr, stdout) = (Output::new().map_err(fail)?, Output::new().map_err(fail)?);
    let mut command = Command::new(WORKER);
    command
        .arg0("spc")
        .args(["flexvolume", "--work"])
        .args(words)
        .args(size)
        .stdin(in_memory(json).map_err(fail)?)
        .stdout(stdout.handle().map_err(fail)?)
        .stderr(stderr.handle().map_err(fail)?);
    log::pass_request(&mut command);
    // Descriptors that kubelet left open do not reach the worker.
    let mut child = sys::tie_to_parent(sys::keep_standard_fds(&mut command))
        .spawn()
        .map_err(fail)?;
    let (status, stopped) = wait(&mut child, limit, &interrupts).map_err(fail)?;
    if let Some(reply) = Reply::read(&stdout.text()) {
        return Ok(reply);
    }
    let failed = Error::system("the call was not answered");
    let failed = match (stopped, status.code(), status.signal()) {
        (Some(why), ..) => failed.because(why),
        (None, Some(code), _) => failed.because(format!("exit status {code}")),
        (None, None, signal) => failed
            .because(format!("killed by signal {}", signal.unwrap_or_default()))
            .hint("kubelet tries again, and spc then rolls back what is left; if memory was short, dmesg says so"),
    };
    Err(failed.log(stderr.last_lines(|line| Some(line))))
}

/// Waits for the worker to end. Returns its status, and the reason if spc stopped it.
///
/// A worker that exceeds `limit`, or whose call was interrupted, gets SIGTERM and time to roll back,
/// then SIGKILL.
fn wait(
    child: &mut Child,
    limit: Duration,
    interrupts: &Interrupts,
) -> std::io::Result<(ExitStatus, Option<String>)> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut deadline = Instant::now() + limit;
    let mut stopped = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if stopped.is_none() {
            fds.push(PollFd::new(interrupts, PollFlags::IN));
        }
        match poll(
            &mut fds,
            Some(&Timespec::try_from(left).unwrap_or_default()),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status, stopped));
        }
        let late = Instant::now() >= deadline;
        let signal = match (interrupts.check(), &stopped) {
            (Err(interrupted), None) => {
                stopped = Some(interrupted.summary());
                Signal::TERM
            }
            (_, None) if late => {
                stopped = Some(format!("took longer than {} s", limit.as_secs()));
                Signal::TERM
            }
            (_, Some(_)) if late => Signal::KILL,
            _ => continue,
        };
        deadline = Instant::now() + TERM_TIME;
        // Fails if the worker has just ended by itself.
        let _ = kill_process_group(pid, signal);
    }
}

/// Returns a text as an anonymous file for standard input, where no other process sees it.
fn in_memory(text: &str) -> std::io::Result<Stdio> {
    Ok(memfd::create("volume", text.as_bytes())?.into())
}
