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

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

pub(crate) fn describe(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// Waits for a child of ours to end, and ends it if it takes too long or a signal stops us.
///
/// # Errors
/// It was ended.
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
            let after = deadline.saturating_duration_since(started).as_secs_f32();
            break Error::mount(format!("ended by spc after {after:.0} s"))
                .reason_is(Reason::Timeout)
                .hint("look whether its server answers, or give it more time with --timeout");
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
                // It has ended, so there is a status.
                let status = waited.map_err(|e| system(e.into()))?;
                return Ok(status.map_or_else(ExitStatus::default, |(_, status)| {
                    ExitStatus::from_raw(status.as_raw())
                }));
            }
            Ok(0) if interrupts.is_some_and(Interrupts::came) => break stopped_elsewhere(),
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
        // It may have ended by itself.
        let _ = kill_process_group(pid, signal);
        if marks::ended(&pidfd, Duration::from_secs(2)) {
            // Reaped; the status does not matter any more.
            let _ = waitpid(Some(pid), WaitOptions::empty());
            break;
        }
    }
    Err(stopped)
}

/// A line on the terminal while a helper takes long; nothing where nobody looks.
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
                "\r\x1b[Kspc: {name} is at work: {} s of at most {limit} s",
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
