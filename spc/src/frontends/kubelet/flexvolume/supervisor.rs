//! The process that kubelet waits for: it starts the worker, and answers for it whatever becomes of it.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::call::Call;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;
use crate::process::interrupts::Interrupts;
use crate::process::output::Output;
use crate::{log, sys};

/// How long a worker may take beyond the limit of the mount, to undo what is half made.
const GRACE: Duration = Duration::from_secs(20);

/// And once it was told to stop.
const UNDOING: Duration = Duration::from_secs(12);

/// How long an unmount or a look may take.
const LIMIT: Duration = Duration::from_secs(100);

/// The worker's own program: ours.
const WORKER: &str = "/proc/self/exe";

/// Has the call done.
///
/// # Errors
/// The worker cannot be started, does not end in time, or did not answer.
pub fn run(call: &Call<'_>) -> Result<Reply> {
    let (words, json, limit) = match *call {
        Call::Answered(ref reply) => return Ok(reply.clone()),
        Call::Mount { dir, json } => (vec!["mount", dir], json, volume::timeout(json)? + GRACE),
        Call::Unmount { dir } => (vec!["unmount", dir], "", LIMIT),
        Call::ExpandFs { dir, .. } => (vec!["expandfs", dir], "", LIMIT),
    };
    let size = match call {
        Call::ExpandFs { size, .. } => Some(size.to_string()),
        _ => None,
    };
    let fail = |e: std::io::Error| Error::system("cannot start the work of this call").because(e);
    let interrupts = Interrupts::hold()?;
    let (said, answer) = (Output::new().map_err(fail)?, Output::new().map_err(fail)?);
    let mut command = Command::new(WORKER);
    command
        .arg0("spc")
        .args(["flexvolume", "--work"])
        .args(words)
        .args(size)
        .stdin(in_memory(json).map_err(fail)?)
        .stdout(answer.handle().map_err(fail)?)
        .stderr(said.handle().map_err(fail)?);
    log::hand_on(&mut command);
    // What kubelet may have left open is for nobody but us.
    let mut child = sys::tie_to_parent(sys::keep_standard(&mut command))
        .spawn()
        .map_err(fail)?;
    let (ended, stopped) = wait(&mut child, limit, &interrupts).map_err(fail)?;
    if let Some(reply) = Reply::read(&answer.text()) {
        return Ok(reply);
    }
    let failed = Error::system("the call was not answered");
    let failed = match (stopped, ended.code(), ended.signal()) {
        (Some(why), ..) => failed.because(why),
        (None, Some(code), _) => failed.because(format!("exit status {code}")),
        (None, None, signal) => failed
            .because(format!("killed by signal {}", signal.unwrap_or_default()))
            .hint("kubelet tries again, and what is half made is undone then; if memory is short, dmesg says so"),
    };
    Err(failed.log(said.last_lines(|line| Some(line))))
}

/// Waits for the worker to end. One that takes too long, or is not wanted any more, gets time to undo what it did; the
/// reason comes back.
fn wait(
    child: &mut Child,
    limit: Duration,
    interrupts: &Interrupts,
) -> std::io::Result<(ExitStatus, Option<String>)> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut until = Instant::now() + limit;
    let mut stopped = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
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
        if let Some(ended) = child.try_wait()? {
            return Ok((ended, stopped));
        }
        let late = Instant::now() >= until;
        let signal = match (interrupts.check(), &stopped) {
            (Err(interrupted), None) => {
                stopped = Some(interrupted.summary());
                Signal::TERM
            }
            (_, None) if late => {
                stopped = Some(format!("it took longer than {} s", limit.as_secs()));
                Signal::TERM
            }
            (_, Some(_)) if late => Signal::KILL,
            _ => continue,
        };
        until = Instant::now() + UNDOING;
        // It may have ended by itself.
        let _ = kill_process_group(pid, signal);
    }
}

/// A text that is in memory only.
fn in_memory(text: &str) -> std::io::Result<Stdio> {
    let mut file = File::from(memfd_create("volume", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(Stdio::from(file))
}
