//! Processes that belong to a mount or are a service: found by the mark in their environment, ended in bounded time.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};

/// Environment variable that helpers and their daemons inherit; its value is the mount's id.
pub const MARK: &str = "SPC_MOUNT";

/// A process, by its number in procfs and by the one that our own PID namespace has for it. They differ where the
/// host's procfs is bound over the container's.
#[derive(Clone, Copy)]
struct Number {
    listed: i32,
    own: i32,
}

/// Processes that carry the mark of this mount, in ascending order, our own left out.
///
/// A process that cleared its environment is not found.
pub fn marked(id: &str) -> Vec<i32> {
    let mark = format!("{MARK}={id}");
    let mut found: Vec<i32> = listed(&mark).iter().map(|number| number.own).collect();
    found.sort_unstable();
    found
}

/// Whether one of a mount's processes has the kernel's FUSE open, and so may answer for it.
pub fn answers_fuse(id: &str) -> bool {
    let marked = listed(&format!("{MARK}={id}"));
    marked.iter().any(|number| !fuse_of(*number).is_empty())
}

/// Whether a process of this mount still serves a file system that somebody may use: one of FUSE, by the kernel's end of it.
fn serves(id: &str) -> bool {
    let mut marked = listed(&format!("{MARK}={id}")).into_iter();
    marked.any(|number| {
        let pidfd = Pid::from_raw(number.own).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let Some(Ok(pidfd)) = pidfd else { return false };
        let open = fuse_of(number);
        open.iter().any(|open| is_connected(&pidfd, *open))
    })
}

/// What a process has open of the kernel's FUSE.
fn fuse_of(number: Number) -> Vec<RawFd> {
    let open = fs::read_dir(format!("/proc/{}/fd", number.listed));
    let open = open.into_iter().flatten().flatten();
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.ends_with("fuse")))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes of all mounts, by the mount's id, found in one walk.
pub fn of_mounts() -> BTreeMap<String, Vec<OwnedFd>> {
    let mut found: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for number in marked_by(|listed| mount_of(listed).is_some()) {
        let process = number.listed;
        if let Some(id) = mount_of(process)
            && let Some(pid) = Pid::from_raw(number.own)
            && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            // Pids are used again.
            && mount_of(process).as_ref() == Some(&id)
        {
            found.entry(id).or_default().push(pidfd);
        }
    }
    found
}

/// The mount that a process carries the mark of.
fn mount_of(listed: i32) -> Option<String> {
    let environ = fs::read(format!("/proc/{listed}/environ")).ok()?;
    let mut variables = environ.split(|&b| b == 0);
    let id = variables.find_map(|v| v.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(id).into_owned())
}

/// Whether a program of this name runs, in whatever container, other than in this process.
pub fn runs(program: &str) -> bool {
    let own = std::process::id().to_string();
    let named = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        Some(exe.file_name()? == program && entry.file_name() != *own)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .any(|entry| named(entry) == Some(true))
}

/// Whether a process other than this one is in a mount namespace, told by its inode.
pub fn in_namespace(namespace: u64, except: i32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let is_in = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let own = fs::metadata(entry.path().join("ns/mnt")).ok()?;
        Some(own.ino() == namespace && pid != except)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .any(|entry| is_in(entry) == Some(true))
}

fn listed(mark: &str) -> Vec<Number> {
    marked_by(|listed| has_mark(listed, mark.as_bytes()))
}

/// Processes with a mark, our own left out.
fn marked_by(marked: impl Fn(i32) -> bool) -> Vec<Number> {
    let depth = numbers("self").len().saturating_sub(1);
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|listed| marked(*listed))
        .filter_map(|listed| {
            let own = *numbers(&listed.to_string()).get(depth)?;
            Some(Number { listed, own })
        })
        .filter(|number| number.own != rustix::process::getpid().as_raw_nonzero().get())
        .collect()
}

/// A process's numbers, from procfs's namespace down to its own (proc_pid_status(5), `NSpid`).
fn numbers(process: &str) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn has_mark(listed: i32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{listed}/environ"))
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
            let mut held = hold(id);
            if held.is_empty() {
                // In the middle of an execve(2) a process has no environment to be known by.
                std::thread::sleep(Duration::from_millis(1));
                held = hold(id);
            }
            if held.is_empty() {
                return Vec::new();
            }
            if let Some(signal) = signal {
                for pidfd in &held {
                    // It may have ended by itself; one that is stopped hears of it when it goes on.
                    let _ = pidfd_send_signal(pidfd, signal);
                    let _ = pidfd_send_signal(pidfd, Signal::CONT);
                }
            }
            if !all_ended(&held, until) {
                break;
            }
        }
    }
    marked(id)
}

/// As [`end`], once the host's mount is gone. Where somebody else still has it after `copies`, as a container that bound
/// it, its processes are left alone.
pub fn part(id: &str, patience: Duration, copies: Duration) -> Vec<i32> {
    let start = Instant::now();
    loop {
        let held = hold(id);
        let serves = serves(id);
        if held.is_empty() || (!serves && start.elapsed() >= patience) {
            return end(id, Duration::ZERO);
        }
        if serves && start.elapsed() >= copies {
            tracing::info!("the mount is still in use elsewhere; its daemon stays until that ends");
            return Vec::new();
        }
        all_ended(&held, Instant::now() + Duration::from_millis(50));
    }
}

/// Descriptors of the processes of a mount.
fn hold(id: &str) -> Vec<OwnedFd> {
    hold_marked(&format!("{MARK}={id}"))
}

/// Descriptors of the processes with this variable in their environment; it is looked at again after opening, since
/// pids are reused.
pub fn hold_marked(mark: &str) -> Vec<OwnedFd> {
    listed(mark)
        .into_iter()
        .filter_map(|number| {
            let pidfd = pidfd_open(Pid::from_raw(number.own)?, PidfdFlags::empty()).ok()?;
            has_mark(number.listed, mark.as_bytes()).then_some(pidfd)
        })
        .collect()
}

/// Whether there is still a file system at the other end of a daemon's FUSE device. It is in error if there is none.
fn is_connected(pidfd: &OwnedFd, number: RawFd) -> bool {
    let Ok(fuse) = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) else {
        return true;
    };
    let mut fds = [PollFd::new(&fuse, PollFlags::empty())];
    let asked = poll(&mut fds, Some(&Timespec::default()));
    asked.is_err() || !fds[0].revents().contains(PollFlags::ERR)
}

/// Whether the processes behind these pidfds have ended by then.
pub fn all_ended(held: &[OwnedFd], until: Instant) -> bool {
    held.iter()
        .all(|pidfd| ended(pidfd, until.saturating_duration_since(Instant::now())))
}

/// Whether the process behind a pidfd ends within a time.
pub fn ended(pidfd: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(within).unwrap_or_default();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_process_is_found_and_ended() {
        let id = format!("test-{}", std::process::id());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env(MARK, &id)
            .spawn()
            .unwrap();
        // It may still be in the middle of its execve(2).
        let until = Instant::now() + Duration::from_secs(5);
        while marked(&id).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(marked(&id), [i32::try_from(child.id()).unwrap()]);
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(end(&id, Duration::ZERO), Vec::<i32>::new());
        assert!(!reaper.join().unwrap().success());
    }
}
