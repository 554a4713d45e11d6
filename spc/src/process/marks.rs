//! Processes of a mount or a service: finding them by a mark in their environment, and
//! terminating them in bounded time.

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

/// Environment variable that helpers and their daemons inherit. Its value is the id of the mount.
pub const MARK: &str = "SPC_MOUNT";

/// Both process ids of one process. They differ where the host's procfs is bind-mounted over the
/// container's `/proc`.
#[derive(Clone, Copy)]
struct ProcessId {
    /// Id in the PID namespace of `/proc`.
    in_proc: i32,
    /// Id in the PID namespace of this process.
    own: i32,
}

/// Returns the ids of the processes with the mark of a mount, without this process, in ascending
/// order. A process that cleared its environment is not found.
///
/// # Errors
/// No file descriptor or no memory is left.
fn marked(id: &str) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> = with_variable(&format!("{MARK}={id}"))?
        .iter()
        .map(|process| process.own)
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Returns the ids of the daemons of a mount, in ascending order: the processes with its mark,
/// except this process and the children of such processes, which may exit at any time.
///
/// A process that cleared its environment is not found.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn daemons(id: &str) -> io::Result<Vec<i32>> {
    daemons_among(&with_variable(&format!("{MARK}={id}"))?)
}

/// Does the same as [`daemons`], among the processes of a cgroup. This process must be in the PID
/// namespace of `/proc`.
///
/// # Errors
/// The cgroup cannot be read, or no file descriptor or no memory is left.
pub fn daemons_in(cgroup: &Path, id: &str) -> io::Result<Vec<i32>> {
    let mark = format!("{MARK}={id}");
    let members = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        // systemd removes a cgroup without processes.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        members => members?,
    };
    let mut found = Vec::new();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        if has_mark(&environ(pid)?, mark.as_bytes()) {
            found.push(ProcessId {
                in_proc: pid,
                own: pid,
            });
        }
    }
    daemons_among(&found)
}

/// Returns the processes whose parent is none of the others.
fn daemons_among(found: &[ProcessId]) -> io::Result<Vec<i32>> {
    let mut daemons = Vec::new();
    for process in found {
        let parent = parent(process.in_proc)?;
        if parent.is_some_and(|parent| found.iter().all(|other| other.in_proc != parent)) {
            daemons.push(process.own);
        }
    }
    daemons.sort_unstable();
    Ok(daemons)
}

/// Returns the id of a process's parent in the PID namespace of `/proc`, or `None` if the process
/// has exited.
fn parent(pid: i32) -> io::Result<Option<i32>> {
    let status = default_if_gone(fs::read_to_string(format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.and_then(|parent| parent.trim().parse().ok()))
}

/// Returns whether a process of a mount has `/dev/fuse` open, and so can serve the mount.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn holds_fuse_device(id: &str) -> io::Result<bool> {
    let marked = with_variable(&format!("{MARK}={id}"))?;
    Ok(marked.iter().any(|process| !fuse_fds(*process).is_empty()))
}

/// Returns whether a process of a mount has a FUSE connection that the kernel has not closed. The
/// kernel closes the connection when the last mount of the file system is gone.
fn serves_fuse(id: &str) -> io::Result<bool> {
    let mut marked = with_variable(&format!("{MARK}={id}"))?.into_iter();
    Ok(marked.any(|process| {
        let pidfd = Pid::from_raw(process.own).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let Some(Ok(pidfd)) = pidfd else { return false };
        let fds = fuse_fds(process);
        fds.iter().any(|fd| is_connected(&pidfd, *fd))
    }))
}

/// Returns the file descriptors of `/dev/fuse` in a process.
fn fuse_fds(process: ProcessId) -> Vec<RawFd> {
    let fds = fs::read_dir(format!("/proc/{}/fd", process.in_proc));
    let fds = fds.into_iter().flatten().flatten();
    fds.filter(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.ends_with("fuse")))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns pidfds of the processes of all mounts, by mount id, from one walk through `/proc`.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn by_mount() -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut found: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for process in with_environ(|environ| mount_of(environ).is_some())? {
        let pid_in_proc = process.in_proc;
        if let Some(id) = mount_of(&environ(pid_in_proc)?)
            && let Some(pid) = Pid::from_raw(process.own)
            && let Some(pidfd) = open(pid)?
            // The kernel may have reused the process id before the pidfd was opened.
            && mount_of(&environ(pid_in_proc)?).as_ref() == Some(&id)
        {
            found.entry(id).or_default().push(pidfd);
        }
    }
    Ok(found)
}

/// Returns the environment of a process; empty if the process has exited.
fn environ(pid: i32) -> io::Result<Vec<u8>> {
    default_if_gone(fs::read(format!("/proc/{pid}/environ")))
}

/// Returns a pidfd of a process, or `None` if the process has exited.
fn open(pid: Pid) -> io::Result<Option<OwnedFd>> {
    default_if_gone(
        pidfd_open(pid, PidfdFlags::empty())
            .map(Some)
            .map_err(io::Error::from),
    )
}

/// Replaces an error by the default value, since the process may have exited. Keeps errors that
/// report a shortage of file descriptors or memory.
fn default_if_gone<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if is_shortage(&error) => Err(error),
        result => Ok(result.unwrap_or_default()),
    }
}

/// Returns the mount id in an environment with a mark.
fn mount_of(environ: &[u8]) -> Option<String> {
    let mut variables = environ.split(|&b| b == 0);
    let id = variables.find_map(|v| v.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(id).into_owned())
}

/// Returns whether another process runs a program of this name, in any container.
pub fn is_running(program: &str) -> bool {
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

/// Returns whether a process other than `except` is in the mount namespace with this inode number.
pub fn any_in_namespace(namespace: u64, except: i32) -> bool {
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

/// Returns the processes with a variable, as `NAME=VALUE`, in their environment.
fn with_variable(variable: &str) -> io::Result<Vec<ProcessId>> {
    with_environ(|environ| has_mark(environ, variable.as_bytes()))
}

/// Returns the processes with a matching environment, without this process.
fn with_environ(matches: impl Fn(&[u8]) -> bool) -> io::Result<Vec<ProcessId>> {
    let depth = namespace_pids("self")?.len().saturating_sub(1);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(in_proc) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !matches(&environ(in_proc)?) {
            continue;
        }
        match namespace_pids(&in_proc.to_string())?.get(depth) {
            Some(pid) if *pid != own => found.push(ProcessId { in_proc, own: *pid }),
            _ => {}
        }
    }
    Ok(found)
}

/// Returns the ids of a process, from the PID namespace of `/proc` down to the process's own
/// (proc_pid_status(5), `NSpid`).
fn namespace_pids(process: &str) -> io::Result<Vec<i32>> {
    let status = default_if_gone(fs::read_to_string(format!("/proc/{process}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids = line.unwrap_or_default().split_whitespace();
    Ok(pids.filter_map(|pid| pid.parse().ok()).collect())
}

fn has_mark(environ: &[u8], mark: &[u8]) -> bool {
    environ.split(|&b| b == 0).any(|variable| variable == mark)
}

/// Waits for the processes of a mount to exit, then kills them: TERM, and KILL after 2 s.
///
/// `patience` limits the wait before the first signal. Returns the ids of processes that survived.
///
/// # Errors
/// No file descriptor or no memory is left, so processes may have been missed.
pub fn terminate(id: &str, patience: Duration) -> io::Result<Vec<i32>> {
    for (signal, wait) in [
        (None, patience),
        (Some(Signal::TERM), Duration::from_secs(2)),
        (Some(Signal::KILL), Duration::from_secs(2)),
    ] {
        // A process may fork before it exits, so search until none is left.
        let until = Instant::now() + wait;
        loop {
            let mut held = open_all(id)?;
            if held.is_empty() {
                // A process in the middle of execve(2) has no environment, so search twice.
                std::thread::sleep(Duration::from_millis(1));
                held = open_all(id)?;
            }
            if held.is_empty() {
                return Ok(Vec::new());
            }
            if let Some(signal) = signal {
                for pidfd in &held {
                    // The process may have exited. A stopped process handles TERM once it
                    // continues.
                    let _ = pidfd_send_signal(pidfd, signal);
                    let _ = pidfd_send_signal(pidfd, Signal::CONT);
                }
            }
            if !all_exited(&held, until) {
                break;
            }
        }
    }
    marked(id)
}

/// Terminates the processes of a mount that is gone from the host, unless the file system is still
/// mounted elsewhere, for example in a container that bind-mounted it.
///
/// `patience` is the time for the processes to exit without a signal; `copies_limit` is the time
/// for other mounts of the file system to go away. Returns the ids of processes that survived.
///
/// # Errors
/// No file descriptor or no memory is left, so processes may have been missed.
pub fn stop_unused_daemon(
    id: &str,
    patience: Duration,
    copies_limit: Duration,
) -> io::Result<Vec<i32>> {
    let start = Instant::now();
    loop {
        let held = open_all(id)?;
        let serves = serves_fuse(id)?;
        if held.is_empty() || (!serves && start.elapsed() >= patience) {
            return terminate(id, Duration::ZERO);
        }
        if serves && start.elapsed() >= copies_limit {
            tracing::info!(
                "the file system is still mounted elsewhere; its daemon keeps running until then"
            );
            return Ok(Vec::new());
        }
        all_exited(&held, Instant::now() + Duration::from_millis(50));
    }
}

/// Returns pidfds of the processes of a mount.
fn open_all(id: &str) -> io::Result<Vec<OwnedFd>> {
    open_marked(&format!("{MARK}={id}"))
}

/// Returns pidfds of the processes with a variable, as `NAME=VALUE`, in their environment.
///
/// Reads each environment again after opening the pidfd, since the kernel reuses process ids.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn open_marked(variable: &str) -> io::Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    for process in with_variable(variable)? {
        if let Some(pid) = Pid::from_raw(process.own)
            && let Some(pidfd) = open(pid)?
            && has_mark(&environ(process.in_proc)?, variable.as_bytes())
        {
            held.push(pidfd);
        }
    }
    Ok(held)
}

/// Returns whether a process's FUSE device still has a file system in the kernel. The kernel
/// reports POLLERR on the device when it has none.
fn is_connected(pidfd: &OwnedFd, fd: RawFd) -> bool {
    let Ok(fuse) = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()) else {
        return true;
    };
    let mut fds = [PollFd::new(&fuse, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_err() || !fds[0].revents().contains(PollFlags::ERR)
}

/// Waits for processes to exit, and returns whether all have by the deadline.
pub fn all_exited(pidfds: &[OwnedFd], deadline: Instant) -> bool {
    pidfds
        .iter()
        .all(|pidfd| exited(pidfd, deadline.saturating_duration_since(Instant::now())))
}

/// Waits for a process to exit, and returns whether it has within the timeout.
pub fn exited(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_processes_are_found_and_terminated() {
        let id = format!("test-{}", std::process::id());
        // The shell starts a child, which inherits the mark.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60; :"])
            .env(MARK, &id)
            .spawn()
            .unwrap();
        // Both may still be in the middle of execve(2).
        let until = Instant::now() + Duration::from_secs(5);
        while marked(&id).unwrap().len() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(marked(&id).unwrap().len(), 2);
        assert_eq!(daemons(&id).unwrap(), [i32::try_from(child.id()).unwrap()]);
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(terminate(&id, Duration::ZERO).unwrap(), Vec::<i32>::new());
        assert!(!reaper.join().unwrap().success());
    }
}
