//! Search for processes that may belong to spc.
//!
//! While a process waits in execve(2), reads of most of its files in procfs wait as well, and even
//! those of its links: `exe`, `ns/mnt` and, on Linux 6.18, `stat`. So all processes are searched by
//! `status`, `comm` and `cgroup` only, which never wait.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::error::is_shortage;
use crate::process::procfs::{self, look_at_each};

/// First id of a user who is not of the system.
const FIRST_USER: u32 = 1000;

/// Time limit for a look at all processes of root.
const ROOT_LIMIT: Duration = Duration::from_secs(2);

/// Both process ids of one process. They differ where the host's procfs is bind-mounted over the
/// container's `/proc`.
#[derive(Clone, Copy)]
pub(super) struct ProcessId {
    /// Id in the PID namespace of `/proc`.
    pub(super) in_proc: i32,
    /// Id in the PID namespace of this process.
    pub(super) own: i32,
    /// Id of the parent in the PID namespace of `/proc`.
    pub(super) parent: Option<i32>,
    /// Whether it is the first process of a PID namespace below that of this process.
    pub(super) is_first: bool,
    /// Number that the processes of a cgroup have in common that have an id in equally many PID
    /// namespaces.
    pub(super) group: u64,
}

/// Users whose processes in the cgroup of this process are considered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Users {
    /// The user of this process, which is root, as the real, effective and saved user.
    Own,
    /// Any user: services change to users of their own.
    Any,
}

/// Returns the processes that may belong to spc, without this process: those in a cgroup of spc,
/// those of `users` in the cgroup of this process, which is that of the container, and those of
/// root in its mount namespace. With [`Users::Any`], users of the system count like root.
pub(super) fn candidates(users: Users) -> io::Result<Vec<ProcessId>> {
    let depth = own_depth()?;
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let own_users = [rustix::process::geteuid().as_raw(); 4];
    let own_cgroup = cgroup("/proc/self".as_ref())?;
    let (mut found, mut others) = (Vec::new(), BTreeMap::new());
    for in_proc in all()? {
        let process = path(in_proc);
        let cgroup = cgroup(&process)?;
        let of_spc = is_of_spc(&cgroup);
        // Most processes on a host are of other users. Their status takes longer than both.
        if !of_spc && cgroup != own_cgroup && !may_be_trusted(users, &process) {
            continue;
        }
        let Some(status) = Status::read(&process)?.filter(|_| !cgroup.is_empty()) else {
            continue;
        };
        let Some(own) = status.ids.get(depth - 1).filter(|own| **own != own_pid) else {
            continue;
        };
        let mut hasher = DefaultHasher::new();
        (&cgroup, status.ids.len()).hash(&mut hasher);
        let process = ProcessId {
            in_proc,
            own: *own,
            parent: status.parent,
            is_first: status.ids.len() > depth && status.ids.last() == Some(&1),
            group: hasher.finish(),
        };
        let of_system = users == Users::Any && status.users.iter().all(|user| *user < FIRST_USER);
        let is_trusted = of_system || status.has_users(own_users);
        if of_spc || (cgroup == own_cgroup && (is_trusted || users == Users::Any)) {
            found.push(process);
        } else if is_trusted && status.ids.len() == depth {
            others.insert(in_proc, process);
        }
    }
    // A command may have entered the container's namespaces without its cgroup.
    let own_namespace = mount_namespace("/proc/self".as_ref());
    let is_here =
        move |pid| own_namespace.is_some() && mount_namespace(&path(pid)) == own_namespace;
    let pids: Vec<i32> = others.keys().copied().collect();
    look_at_each(&pids, ROOT_LIMIT, is_here, |in_proc, is_here| {
        found.extend(others.get(&in_proc).filter(|_| is_here));
    })?;
    Ok(found)
}

/// Returns whether the effective user of a process, its owner in `/proc`, is one of `users`.
fn may_be_trusted(users: Users, process: &Path) -> bool {
    fs::metadata(process).is_ok_and(|process| match users {
        Users::Own => process.uid() == rustix::process::geteuid().as_raw(),
        Users::Any => process.uid() < FIRST_USER,
    })
}

/// Returns the ids of all processes in `/proc`.
fn all() -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

fn path(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Returns the inode number of the mount namespace of a process.
fn mount_namespace(process: &Path) -> Option<u64> {
    Some(fs::metadata(process.join("ns/mnt")).ok()?.ino())
}

/// Returns the number of PID namespaces that this process has an id in, from that of `/proc` down.
fn own_depth() -> io::Result<usize> {
    Ok(Status::read("/proc/self".as_ref())?.map_or(1, |own| own.ids.len().max(1)))
}

/// Returns the cgroups of a process (`/proc/PID/cgroup`); empty if the process has exited.
fn cgroup(process: &Path) -> io::Result<String> {
    default_if_gone(procfs::read_text(process.join("cgroup")))
}

/// Returns whether a process is in a cgroup that spc made on the host.
pub fn in_cgroup_of_spc(pid: i32) -> bool {
    cgroup(&path(pid)).is_ok_and(|cgroup| is_of_spc(&cgroup))
}

/// Returns whether one of a process's cgroups was made by spc (`host/cgroup.rs`).
fn is_of_spc(cgroups: &str) -> bool {
    cgroups.lines().any(|line| {
        let path = line.splitn(3, ':').nth(2);
        path.is_some_and(is_cgroup_of_spc)
    })
}

/// Returns whether a cgroup is one that spc made: `/spc/NAME`, or a scope of systemd directly below
/// `/system.slice`. In a cgroup namespace of its own, a container sees the paths of others after
/// `/..` for each level, and those of its own slice without the name of the slice.
fn is_cgroup_of_spc(path: &str) -> bool {
    let is_scope = |name: &str| name.starts_with("spc-") && name.ends_with(".scope");
    let names = path.split('/').skip(1).skip_while(|name| *name == "..");
    match names.collect::<Vec<_>>()[..] {
        ["spc", _] => true,
        ["system.slice", name] | [name] => is_scope(name),
        _ => false,
    }
}

/// Content of `/proc/PID/status` (proc_pid_status(5)).
pub struct Status {
    /// Id of the parent in the PID namespace of `/proc`.
    pub parent: Option<i32>,
    /// Real, effective, saved and file system user.
    users: Vec<u32>,
    /// Ids of the process, from the PID namespace of `/proc` down to the process's own.
    pub ids: Vec<i32>,
}

impl Status {
    /// Reads the status of a process; none if the process has exited.
    pub fn read(process: &Path) -> io::Result<Option<Self>> {
        let text = default_if_gone(procfs::read_text(process.join("status")))?;
        if text.is_empty() {
            return Ok(None);
        }
        let field = |name| {
            let line = text.lines().find_map(|line: &str| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace()
        };
        Ok(Some(Self {
            parent: field("PPid:").next().and_then(|pid| pid.parse().ok()),
            users: field("Uid:").filter_map(|user| user.parse().ok()).collect(),
            ids: field("NSpid:").filter_map(|pid| pid.parse().ok()).collect(),
        }))
    }

    /// Returns whether these are the real, effective, saved and file system user.
    pub fn has_users(&self, users: [u32; 4]) -> bool {
        self.users == users
    }
}

/// Returns whether another process of root runs a program of this name, in any container. A process
/// that cannot be looked at in time counts as one that does.
pub fn is_running(program: &str) -> bool {
    let program = program.to_owned();
    any_of_root(usize::MAX, move |pid| {
        let exe = fs::read_link(path(pid).join("exe"));
        exe.is_ok_and(|exe| exe.file_name().is_some_and(|name| *name == *program))
    })
}

/// Returns whether a process other than `except` is in the mount namespace with this inode number,
/// which only root can enter. A process that cannot be looked at in time counts as one that is.
pub fn any_in_namespace(namespace: u64, except: i32) -> bool {
    // Processes there are in the PID namespace of the host, and those of pods are not.
    let is_in = move |pid| pid != except && mount_namespace(&path(pid)) == Some(namespace);
    any_of_root(own_depth().unwrap_or(1), is_in)
}

/// Returns whether `holds` is true for another process of root, with an id in `depth` PID
/// namespaces at most, or cannot be found out.
fn any_of_root(depth: usize, holds: impl Fn(i32) -> bool + Clone + Send + 'static) -> bool {
    let own = std::process::id().cast_signed();
    let is_roots = |pid: &i32| {
        let status = Status::read(&path(*pid)).ok().flatten();
        *pid != own
            && status.is_some_and(|status| status.has_users([0; 4]) && status.ids.len() <= depth)
    };
    let roots: Vec<i32> = all().unwrap_or_default();
    let roots: Vec<i32> = roots.into_iter().filter(is_roots).collect();
    let mut any = false;
    let done = look_at_each(&roots, ROOT_LIMIT, holds, |_, holds| any |= holds);
    any || !matches!(done, Ok(true))
}

/// Replaces an error by the default value, since the process may have exited. Keeps errors that
/// report a shortage of file descriptors or memory.
pub(super) fn default_if_gone<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if is_shortage(&error) => Err(error),
        result => Ok(result.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_spc_are_known_by_their_place() {
        for path in [
            "/spc/mnt-data",
            "/../../spc/mnt-data",
            "/system.slice/spc-mnt-data.scope",
            "/../../../system.slice/spc-mnt-data.scope",
            "/../spc-mnt-data.scope",
        ] {
            assert!(is_cgroup_of_spc(path), "{path}");
        }
        for path in [
            "/",
            "/spc",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/spc-a.scope",
            "/../../user.slice/spc-a.scope",
            "/docker/spc/a",
            "/system.slice/spc-a.service",
            "/spc/a/b",
            "/system.slice/spc/a",
        ] {
            assert!(!is_cgroup_of_spc(path), "{path}");
        }
    }
}
