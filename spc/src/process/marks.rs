//! Processes of a mount or a service, and the search for them.
//!
//! A process belongs to a mount if it has the mount's mark in its environment, and if it is in a
//! place that only spc and root put processes in: a cgroup of spc on the host, the cgroup of this
//! process, which is that of the container, or its mount namespace. Users can write any mark, so
//! that a mark elsewhere means nothing. Nothing is read of processes elsewhere but their place.
//!
//! A sandbox has the mark of its first process, which is spc. The other processes in it may have any
//! number, any marks and memory that cannot be read in time, since a server that has taken them over
//! decides. Their memory is not read. They end with the first process.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::process::candidates::{ProcessId, Status, Users, candidates, default_if_gone};
use crate::process::procfs::{self, look_at_each};

/// Environment variable that helpers and their daemons inherit. Its value is the id of the mount.
const MARK: &str = "SPC_MOUNT";

/// Longest environment that a marked program inherits, in bytes, so that the mark is within the
/// part that is read.
const MAX_INHERITED: usize = 64 * 1024;

/// Time limit for reading the environments of all processes that may belong to spc.
const SEARCH_LIMIT: Duration = Duration::from_secs(10);

/// Number of processes of one mount that are held open. A daemon that its server has taken over may
/// start more than this process can open.
const MAX_HELD: usize = 256;

/// Longest mark, in bytes. Ids have 16 bytes, names of services a few more.
const MAX_ID: usize = 128;

/// Device number of `/dev/fuse`, which is the same on every host.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Marks a command, and removes variables that make its environment longer than 64 KiB.
pub fn mark(command: &mut Command, id: &str) {
    let mut length = 0;
    for (name, value) in std::env::vars_os() {
        length += name.len() + value.len() + 2;
        if length > MAX_INHERITED {
            command.env_remove(name);
        }
    }
    command.env(MARK, id);
}

/// Returns the ids of the processes with the mark of a mount, without this process, in ascending
/// order. A process that cleared its environment is not found.
///
/// # Errors
/// No file descriptor or no memory is left.
pub(super) fn marked(id: &str) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> = with_mark(id)?.iter().map(|process| process.own).collect();
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
    daemons_among(&with_mark(id)?)
}

/// Does the same as [`daemons`], among the processes of a cgroup. This process must be in the PID
/// namespace of `/proc`.
///
/// # Errors
/// The cgroup cannot be read, or no file descriptor or no memory is left.
pub fn daemons_in(cgroup: &Path, id: &str) -> io::Result<Vec<i32>> {
    let members = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        // systemd removes a cgroup without processes.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            return Ok(Vec::new());
        }
        members => members?,
    };
    let members = members.lines().filter_map(|line| line.parse().ok());
    let members = members.map(|pid| ProcessId {
        in_proc: pid,
        own: pid,
        parent: None,
        is_first: false,
        group: 0,
    });
    let variable = format!("{MARK}={id}");
    let is_marked = move |environ: &[u8]| has_variable(environ, &variable).then_some(());
    let found = matching(members.collect(), is_marked)?;
    daemons_among(
        &found
            .into_iter()
            .map(|(process, ())| process)
            .collect::<Vec<_>>(),
    )
}

/// Returns the processes whose parent is none of the others.
fn daemons_among(found: &[ProcessId]) -> io::Result<Vec<i32>> {
    let mut daemons = Vec::new();
    for process in found {
        let status = Status::read(format!("/proc/{}", process.in_proc).as_ref())?;
        let parent = status.and_then(|status| status.parent);
        if parent.is_some_and(|parent| found.iter().all(|other| other.in_proc != parent)) {
            daemons.push(process.own);
        }
    }
    daemons.sort_unstable();
    Ok(daemons)
}

/// Returns whether a process of a mount has `/dev/fuse` open, and so can serve the mount.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn holds_fuse_device(id: &str) -> io::Result<bool> {
    any_process(&with_mark(id)?, |process| !fuse_fds(process).is_empty())
}

/// Returns whether a process of a mount has a FUSE connection that the kernel has not closed. The
/// kernel closes the connection when the last mount of the file system is gone.
pub(super) fn serves_fuse(id: &str) -> io::Result<bool> {
    any_process(&with_mark(id)?, |process| {
        let pidfd = Pid::from_raw(process.own).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let Some(Ok(pidfd)) = pidfd else { return false };
        let fds = fuse_fds(process);
        fds.iter().any(|fd| is_connected(&pidfd, *fd))
    })
}

/// Returns whether something holds for any process. A process that cannot be looked at in time,
/// such as in the middle of execve(2), counts as one for which it holds.
fn any_process(processes: &[ProcessId], holds: fn(ProcessId) -> bool) -> io::Result<bool> {
    let by_id: BTreeMap<i32, ProcessId> = processes.iter().map(|p| (p.in_proc, *p)).collect();
    let pids: Vec<i32> = by_id.keys().copied().collect();
    let look = move |pid| by_id.get(&pid).is_some_and(|process| holds(*process));
    let mut any = false;
    let all = look_at_each(&pids, SEARCH_LIMIT, look, |_, holds| any |= holds)?;
    Ok(any || !all)
}

/// Returns the file descriptors of `/dev/fuse` in a process.
fn fuse_fds(process: ProcessId) -> Vec<RawFd> {
    let fds = fs::read_dir(format!("/proc/{}/fd", process.in_proc));
    let fds = fds.into_iter().flatten().flatten();
    // The name comes first, because statx(2) may contact a server for other files.
    fds.filter(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.ends_with("fuse")))
        .filter(|entry| is_fuse_device(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns whether a file is `/dev/fuse`, by its device number.
fn is_fuse_device(file: &Path) -> bool {
    let found = statx(CWD, file, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    found.is_ok_and(|file| {
        FileType::from_raw_mode(file.stx_mode.into()) == FileType::CharacterDevice
            && (file.stx_rdev_major, file.stx_rdev_minor) == FUSE_DEVICE
    })
}

/// Returns pidfds of the processes of all mounts, by mount id, from one walk through `/proc`. Of a
/// sandbox it is the first process.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn by_mount() -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut found: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for (id, pidfd) in hold(outside_sandboxes(search(MARK, Users::Own)?), MARK)? {
        found.entry(id).or_default().push(pidfd);
    }
    Ok(found)
}

/// Process with the mark of a mount or service.
struct Marked {
    process: ProcessId,
    id: String,
    /// Whether it is in a sandbox, and not the first process there.
    is_inside: bool,
}

/// Returns all processes with a mark in this variable.
fn search(variable: &'static str, users: Users) -> io::Result<Vec<Marked>> {
    let (first, others): (Vec<_>, Vec<_>) =
        candidates(users)?.into_iter().partition(|p| p.is_first);
    let marked = |is_inside| {
        move |(process, id)| Marked {
            process,
            id,
            is_inside,
        }
    };
    // Also of a sandbox that is ending, whose first process has no environment any more.
    let groups: BTreeSet<u64> = first.iter().map(|first| first.group).collect();
    let sandboxes = matching(first, |environ| mark_in(environ, MARK))?;
    let (inside, outside): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|p| groups.contains(&p.group));
    let outside = matching(outside, move |environ| mark_in(environ, variable))?;
    let mut found: Vec<Marked> = outside.into_iter().map(marked(false)).collect();
    if variable == MARK {
        // Several sandboxes may share a cgroup. A process whose parent has just ended belongs to
        // none for a moment.
        let mut children: BTreeMap<i32, Vec<ProcessId>> = BTreeMap::new();
        for process in inside {
            let parent = process.parent.unwrap_or_default();
            children.entry(parent).or_default().push(process);
        }
        for (first, id) in &sandboxes {
            let mut parents = vec![first.in_proc];
            while let Some(parent) = parents.pop() {
                for process in children.remove(&parent).unwrap_or_default() {
                    parents.push(process.in_proc);
                    found.push(marked(true)((process, id.clone())));
                }
            }
        }
        found.extend(sandboxes.into_iter().map(marked(false)));
    }
    Ok(found)
}

/// Returns the processes that are not inside a sandbox, among them the first process of each.
fn outside_sandboxes(found: Vec<Marked>) -> Vec<(ProcessId, String)> {
    let outside = found.into_iter().filter(|marked| !marked.is_inside);
    outside.map(|marked| (marked.process, marked.id)).collect()
}

/// Returns the processes for which `select` returns something of their environment, with that.
fn matching<T: Send + 'static>(
    processes: Vec<ProcessId>,
    select: impl Fn(&[u8]) -> Option<T> + Clone + Send + 'static,
) -> io::Result<Vec<(ProcessId, T)>> {
    let by_id: BTreeMap<i32, ProcessId> = processes.iter().map(|p| (p.in_proc, *p)).collect();
    let pids: Vec<i32> = processes.iter().map(|process| process.in_proc).collect();
    let look = move |pid| environ(pid).map(|environ| select(&environ));
    let (mut found, mut shortage) = (Vec::new(), None);
    look_at_each(&pids, SEARCH_LIMIT, look, |pid, selected| match selected {
        Ok(Some(selected)) => {
            found.extend(by_id.get(&pid).map(|process| (*process, selected)));
        }
        Ok(None) => {}
        Err(error) => shortage = Some(error),
    })?;
    match shortage {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// Returns pidfds of marked processes, with their marks. For the same mark at most [`MAX_HELD`],
/// with the lowest ids.
///
/// Reads each environment again after opening the pidfd, since the kernel reuses process ids.
fn hold(
    processes: Vec<(ProcessId, String)>,
    variable: &'static str,
) -> io::Result<Vec<(String, OwnedFd)>> {
    let (mut opened, mut held) = (Vec::new(), BTreeMap::<String, usize>::new());
    for (process, id) in processes {
        let held = held.entry(id.clone()).or_default();
        *held += 1;
        if *held > MAX_HELD {
            continue;
        }
        if let Some(pid) = Pid::from_raw(process.own)
            && let Some(pidfd) = open(pid)?
        {
            opened.push((process, id, pidfd));
        }
    }
    let again = opened.iter().map(|(process, ..)| *process).collect();
    let again: BTreeMap<i32, String> = matching(again, move |environ| mark_in(environ, variable))?
        .into_iter()
        .map(|(process, id)| (process.in_proc, id))
        .collect();
    let same = opened.into_iter().filter_map(|(process, id, pidfd)| {
        (again.get(&process.in_proc) == Some(&id)).then_some((id, pidfd))
    });
    Ok(same.collect())
}

/// Returns the value of a variable in the environment of any process, by its id in `/proc`. None if
/// it cannot be read in time.
pub fn variable_of(pid: i32, name: &'static str) -> Option<String> {
    let look = move |pid| value_of(&environ(pid).ok()?, name);
    let mut value = None;
    look_at_each(&[pid], SEARCH_LIMIT, look, |_, found| value = found).ok()?;
    value
}

/// Returns the environment of a process; empty if the process has exited.
fn environ(pid: i32) -> io::Result<Vec<u8>> {
    default_if_gone(procfs::read(format!("/proc/{pid}/environ")))
}

/// Returns a pidfd of a process, or `None` if the process has exited.
fn open(pid: Pid) -> io::Result<Option<OwnedFd>> {
    default_if_gone(
        pidfd_open(pid, PidfdFlags::empty())
            .map(Some)
            .map_err(io::Error::from),
    )
}

/// Returns the mark in a variable of an environment.
fn mark_in(environ: &[u8], variable: &str) -> Option<String> {
    value_of(environ, variable).filter(|id| id.len() <= MAX_ID)
}

/// Returns the value of a variable in an environment.
fn value_of(environ: &[u8], name: &str) -> Option<String> {
    let mut variables = environ.split(|&b| b == 0);
    let value = variables.find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Returns the processes with the mark of a mount, and all that are in its sandbox.
fn with_mark(id: &str) -> io::Result<Vec<ProcessId>> {
    let found = search(MARK, Users::Own)?.into_iter();
    let of_mount = found.filter(|marked| marked.id == id);
    Ok(of_mount.map(|marked| marked.process).collect())
}

fn has_variable(environ: &[u8], variable: &str) -> bool {
    let mut variables = environ.split(|&b| b == 0);
    variables.any(|found| found == variable.as_bytes())
}

/// Returns pidfds of the processes of a mount. Of a sandbox it is the first process.
pub(super) fn open_all(id: &str) -> io::Result<Vec<OwnedFd>> {
    open_marked(MARK, id, Users::Own)
}

/// Returns pidfds of the processes with this value of a variable in their environment. Processes of
/// any user are considered, as services change to users of their own.
///
/// # Errors
/// No file descriptor or no memory is left.
pub fn open_service(variable: &'static str, mark: &str) -> io::Result<Vec<OwnedFd>> {
    open_marked(variable, mark, Users::Any)
}

fn open_marked(variable: &'static str, mark: &str, users: Users) -> io::Result<Vec<OwnedFd>> {
    let mut found = outside_sandboxes(search(variable, users)?);
    found.retain(|(_, id)| id == mark);
    let held = hold(found, variable)?;
    Ok(held.into_iter().map(|(_, pidfd)| pidfd).collect())
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
    use crate::process::terminate::terminate;

    #[test]
    fn marked_processes_are_found_and_terminated() {
        let id = format!("test-{}", std::process::id());
        // The shell starts a child, which inherits the mark.
        let mut command = Command::new("sh");
        mark(command.args(["-c", "sleep 60; :"]), &id);
        let mut child = command.spawn().unwrap();
        // Both may still be in the middle of execve(2).
        let until = Instant::now() + Duration::from_secs(5);
        while marked(&id).unwrap().len() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(marked(&id).unwrap().len(), 2);
        let pid = child.id().cast_signed();
        assert_eq!(variable_of(pid, MARK), Some(id.clone()));
        assert_eq!(daemons(&id).unwrap(), [pid]);
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(terminate(&id, Duration::ZERO).unwrap(), Vec::<i32>::new());
        assert!(!reaper.join().unwrap().success());
    }
    #[test]
    fn the_device_is_known_by_its_number_and_not_by_its_name() {
        assert!(!is_fuse_device("/dev/null".as_ref()));
        let directory = std::env::temp_dir().join(format!("spc-marks-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let file = directory.join("fuse");
        fs::write(&file, "").unwrap();
        assert!(!is_fuse_device(&file));
        fs::remove_dir_all(&directory).unwrap();
        let exists = Path::new("/dev/fuse").exists();
        assert_eq!(is_fuse_device("/dev/fuse".as_ref()), exists);
    }
}
