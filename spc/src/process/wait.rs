//! Waits for a subprocess with a time limit, and kills it when the limit or a signal ends the wait.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid,
};

use crate::error::{Error, Reason, Result};
use crate::process::interrupts::{Interrupts, stopped_elsewhere};
use crate::process::marks;

/// Exit of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Exited with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Converts the status of a child that has exited.
pub(crate) fn describe(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// Waits for a child process, which leads a process group of its own, and reaps it.
///
/// When the deadline passes or a signal arrives, spc kills the process group: TERM, then KILL
/// after 2 s. `name` is used in errors and progress messages.
///
/// # Errors
/// The wait was ended by the deadline or a signal, or the child cannot be waited for.
pub fn wait(
    pid: Pid,
    name: &str,
    started: Instant,
    deadline: Instant,
    interrupts: Option<&Interrupts>,
) -> Result<ExitStatus> {
    let system = |e: std::io::Error| Error::system(format!("cannot wait for {name}")).because(e);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| system(e.into()))?;
    let mut progress = Progress::default();
    let stopped = loop {
        let now = Instant::now();
        if now >= deadline {
            let limit = deadline.saturating_duration_since(started).as_secs_f32();
            break Error::mount(format!("killed by spc after {limit:.0} s"))
                .reason_is(Reason::Timeout)
                .hint("check that the server responds, or raise the limit with --timeout");
        }
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(interrupts.map(|held| PollFd::new(held, PollFlags::IN)));
        let step = deadline
            .saturating_duration_since(now)
            .min(Duration::from_millis(250));
        match poll(
            &mut fds,
            Some(&Timespec::try_from(step).unwrap_or_default()),
        ) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => {
                let waited = waitpid(Some(pid), WaitOptions::empty());
                let status = waited.map_err(|e| system(e.into()))?;
                return Ok(status.map_or_else(ExitStatus::default, |(_, status)| {
                    ExitStatus::from_raw(status.as_raw())
                }));
            }
            Ok(0) if interrupts.is_some_and(Interrupts::any_received) => break stopped_elsewhere(),
            Ok(ready) => {
                if let Some(Err(stop)) = interrupts.map(Interrupts::check) {
                    break stop;
                }
                if ready == 0 {
                    progress.show(name, started, deadline);
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => break system(error.into()),
        }
    };
    drop(progress);
    for signal in [Signal::TERM, Signal::KILL] {
        // Fails if the process group has exited meanwhile.
        let _ = kill_process_group(pid, signal);
        if marks::exited(&pidfd, Duration::from_secs(2)) {
            // Reap the child; its status is not needed.
            let _ = waitpid(Some(pid), WaitOptions::empty());
            break;
        }
    }
    Err(stopped)
}

/// Progress line on stderr, if that is a terminal, from the third second of a wait on.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, name: &str, started: Instant, deadline: Instant) {
        if started.elapsed() >= Duration::from_secs(2) && std::io::stderr().is_terminal() {
            self.shown = true;
            let seconds = |time: Duration| time.as_secs_f32().round();
            let limit = seconds(deadline.saturating_duration_since(started));
            eprint!(
                "\r\x1b[Kspc: {name} is running: {} s of at most {limit} s",
                seconds(started.elapsed())
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
