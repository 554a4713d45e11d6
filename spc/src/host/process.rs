//! Processes that belong to a mount: found by the mark in their environment, ended in bounded time.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Environment variable that helpers and their daemons inherit; its value is the mount's id.
pub const MARK: &str = "SPC_MOUNT";

/// Processes that carry the mark of this mount, in ascending order, our own left out.
///
/// A process that cleared its environment is not found.
pub fn marked(id: &str) -> Vec<i32> {
    let mark = format!("{MARK}={id}");
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut found: Vec<i32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && has_mark(*pid, mark.as_bytes()))
        .collect();
    found.sort_unstable();
    found
}

fn has_mark(pid: i32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|&b| b == 0).any(|variable| variable == mark))
}

/// Waits for the mount's processes to end by themselves, then ends them: TERM, and KILL after 2 s.
/// Gives back those that are still there after that.
pub fn end(id: &str, patience: Duration) -> Vec<i32> {
    for (signal, wait) in [
        (None, patience),
        (Some(Signal::TERM), Duration::from_secs(2)),
        (Some(Signal::KILL), Duration::from_secs(2)),
    ] {
        // Whoever is found may fork before it ends, so look until nobody is left.
        let until = Instant::now() + wait;
        loop {
            let held = hold(id);
            if held.is_empty() {
                return Vec::new();
            }
            if let Some(signal) = signal {
                for pidfd in &held {
                    // It may have ended by itself.
                    let _ = pidfd_send_signal(pidfd, signal);
                }
            }
            if !all_ended(&held, until) {
                break;
            }
        }
    }
    marked(id)
}

/// Descriptors of the marked processes; the mark is looked at again after opening, since pids are reused.
fn hold(id: &str) -> Vec<OwnedFd> {
    let mark = format!("{MARK}={id}");
    marked(id)
        .into_iter()
        .filter_map(|pid| {
            let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            has_mark(pid, mark.as_bytes()).then_some(pidfd)
        })
        .collect()
}

fn all_ended(held: &[OwnedFd], until: Instant) -> bool {
    held.iter()
        .all(|pidfd| ended(pidfd, until.saturating_duration_since(Instant::now())))
}

/// Whether the process behind a pidfd ends within a time.
pub fn ended(pidfd: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(within).unwrap_or_default();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}
