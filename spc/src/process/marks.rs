//! Processes that belong to a mount or are a service: found by the mark in their environment, ended in bounded time.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};

use crate::error::is_shortage;

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
///
/// # Errors
/// There is no descriptor or no memory to look.
fn marked(id: &str) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> = listed(&format!("{MARK}={id}"))?
        .iter()
        .map(|number| number.own)
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The processes that carry the mark of this mount, in ascending order, our own left out, and what one of them has started
/// as well: that is at work for it, and may end at any moment.
///
/// A process that cleared its environment is not found.
///
/// # Errors
/// There is no descriptor or no memory to look.
pub fn daemons(id: &str) -> io::Result<Vec<i32>> {
    daemons_among(&listed(&format!("{MARK}={id}"))?)
}

/// As [`daemons`], of the processes of a cgroup: the others are not looked at. Our PID namespace has to be procfs's.
///
/// # Errors
/// As [`daemons`], or the cgroup cannot be read.
pub fn daemons_in(cgroup: &Path, id: &str) -> io::Result<Vec<i32>> {
    let mark = format!("{MARK}={id}");
    let members = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        // systemd removes one that nobody is left in.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        members => members?,
    };
    let mut found = Vec::new();
    for listed in members.lines().filter_map(|line| line.parse().ok()) {
        if has_mark(&environ(listed)?, mark.as_bytes()) {
            let own = listed;
            found.push(Number { listed, own });
        }
    }
    daemons_among(&found)
}

fn daemons_among(found: &[Number]) -> io::Result<Vec<i32>> {
    let mut daemons = Vec::new();
    for number in found {
        let starter = parent(number.listed)?;
        if starter.is_some_and(|starter| found.iter().all(|other| other.listed != starter)) {
            daemons.push(number.own);
        }
    }
    daemons.sort_unstable();
    Ok(daemons)
}

/// The number of a process's parent in procfs; none if it has ended.
fn parent(listed: i32) -> io::Result<Option<i32>> {
    let status = unless_short(fs::read_to_string(format!("/proc/{listed}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.and_then(|parent| parent.trim().parse().ok()))
}

/// Whether one of a mount's processes has the kernel's FUSE open, and so may answer for it.
///
/// # Errors
/// There is no descriptor or no memory to look.
pub fn answers_fuse(id: &str) -> io::Result<bool> {
    let marked = listed(&format!("{MARK}={id}"))?;
    Ok(marked.iter().any(|number| !fuse_of(*number).is_empty()))
}

/// Whether a process of this mount still serves a file system that somebody may use: one of FUSE, by the kernel's end of it.
fn serves(id: &str) -> io::Result<bool> {
    let mut marked = listed(&format!("{MARK}={id}"))?.into_iter();
    Ok(marked.any(|number| {
        let pidfd = Pid::from_raw(number.own).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let Some(Ok(pidfd)) = pidfd else { return false };
        let open = fuse_of(number);
        open.iter().any(|open| is_connected(&pidfd, *open))
    }))
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
///
/// # Errors
/// There is no descriptor or no memory to look.
pub fn of_mounts() -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut found: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for number in marked_by(|environ| mount_of(environ).is_some())? {
        let process = number.listed;
        if let Some(id) = mount_of(&environ(process)?)
            && let Some(pid) = Pid::from_raw(number.own)
            && let Some(pidfd) = open(pid)?
            // Pids are used again.
            && mount_of(&environ(process)?).as_ref() == Some(&id)
        {
            found.entry(id).or_default().push(pidfd);
        }
    }
    Ok(found)
}

/// The environment of a process; empty if it has none, or has ended.
fn environ(listed: i32) -> io::Result<Vec<u8>> {
    unless_short(fs::read(format!("/proc/{listed}/environ")))
}

/// A descriptor of a process; none if it has ended.
fn open(pid: Pid) -> io::Result<Option<OwnedFd>> {
    unless_short(
        pidfd_open(pid, PidfdFlags::empty())
            .map(Some)
            .map_err(io::Error::from),
    )
}

/// What was read of a process, and nothing if it has ended: not being able to look is something else.
fn unless_short<T: Default>(read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(error) if is_shortage(&error) => Err(error),
        read => Ok(read.unwrap_or_default()),
    }
}

/// The mount that an environment has the mark of.
fn mount_of(environ: &[u8]) -> Option<String> {
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

fn listed(mark: &str) -> io::Result<Vec<Number>> {
    marked_by(|environ| has_mark(environ, mark.as_bytes()))
}

/// Processes with a mark in their environment, our own left out.
fn marked_by(marked: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Number>> {
    let depth = numbers("self")?.len().saturating_sub(1);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(listed) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !marked(&environ(listed)?) {
            continue;
        }
        match numbers(&listed.to_string())?.get(depth) {
            Some(number) if *number != own => found.push(Number {
                listed,
                own: *number,
            }),
            _ => {}
        }
    }
    Ok(found)
}

/// A process's numbers, from procfs's namespace down to its own (proc_pid_status(5), `NSpid`).
fn numbers(process: &str) -> io::Result<Vec<i32>> {
    let status = unless_short(fs::read_to_string(format!("/proc/{process}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers = line.unwrap_or_default().split_whitespace();
    Ok(numbers.filter_map(|number| number.parse().ok()).collect())
}

fn has_mark(environ: &[u8], mark: &[u8]) -> bool {
    environ.split(|&b| b == 0).any(|variable| variable == mark)
}

/// Waits for the mount's processes to end by themselves, then ends them: TERM, and KILL after 2 s.
/// Gives back those that are still there after that.
///
/// # Errors
/// There is no descriptor or no memory to look, so some may be there.
pub fn end(id: &str, patience: Duration) -> io::Result<Vec<i32>> {
    for (signal, wait) in [
        (None, patience),
        (Some(Signal::TERM), Duration::from_secs(2)),
        (Some(Signal::KILL), Duration::from_secs(2)),
    ] {
        // Whoever is found may fork before it ends, so look until nobody is left.
        let until = Instant::now() + wait;
        loop {
            let mut held = hold(id)?;
            if held.is_empty() {
                // In the middle of an execve(2) a process has no environment to be known by.
                std::thread::sleep(Duration::from_millis(1));
                held = hold(id)?;
            }
            if held.is_empty() {
                return Ok(Vec::new());
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
///
/// # Errors
/// As [`end`].
pub fn part(id: &str, patience: Duration, copies: Duration) -> io::Result<Vec<i32>> {
    let start = Instant::now();
    loop {
        let held = hold(id)?;
        let serves = serves(id)?;
        if held.is_empty() || (!serves && start.elapsed() >= patience) {
            return end(id, Duration::ZERO);
        }
        if serves && start.elapsed() >= copies {
            tracing::info!("the mount is still in use elsewhere; its daemon stays until that ends");
            return Ok(Vec::new());
        }
        all_ended(&held, Instant::now() + Duration::from_millis(50));
    }
}

/// Descriptors of the processes of a mount.
fn hold(id: &str) -> io::Result<Vec<OwnedFd>> {
    hold_marked(&format!("{MARK}={id}"))
}

/// Descriptors of the processes with this variable in their environment; it is looked at again after opening, since
/// pids are reused.
///
/// # Errors
/// There is no descriptor or no memory to look.
pub fn hold_marked(mark: &str) -> io::Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    for number in listed(mark)? {
        if let Some(pid) = Pid::from_raw(number.own)
            && let Some(pidfd) = open(pid)?
            && has_mark(&environ(number.listed)?, mark.as_bytes())
        {
            held.push(pidfd);
        }
    }
    Ok(held)
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
    fn marked_processes_are_found_and_ended() {
        let id = format!("test-{}", std::process::id());
        // It starts another one, which is at work for it.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60; :"])
            .env(MARK, &id)
            .spawn()
            .unwrap();
        // It may still be in the middle of its execve(2).
        let until = Instant::now() + Duration::from_secs(5);
        while marked(&id).unwrap().len() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(marked(&id).unwrap().len(), 2);
        assert_eq!(daemons(&id).unwrap(), [i32::try_from(child.id()).unwrap()]);
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(end(&id, Duration::ZERO).unwrap(), Vec::<i32>::new());
        assert!(!reaper.join().unwrap().success());
    }
}
