//! Search for processes that may belong to spc.
//!
//! Reads only files of procfs whose length and time no other user determines.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use crate::error::is_shortage;
use crate::process::procfs;

/// Both process ids of one process. They differ where the host's procfs is bind-mounted over the
/// container's `/proc`.
#[derive(Clone, Copy)]
pub(super) struct ProcessId {
    /// Id in the PID namespace of `/proc`.
    pub(super) in_proc: i32,
    /// Id in the PID namespace of this process.
    pub(super) own: i32,
}

/// Users whose processes in the mount namespace of this process are considered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Users {
    /// The user of this process, which is root, as the real, effective and saved user.
    Own,
    /// Any user: services change to users of their own.
    Any,
}

/// Returns the processes that may belong to spc, without this process: those in a cgroup of spc,
/// and those of `users` in the mount namespace of this process.
pub(super) fn candidates(users: Users) -> io::Result<Vec<ProcessId>> {
    let depth =
        Status::read("/proc/self".as_ref())?.map_or(0, |own| own.ids.len().saturating_sub(1));
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let own_users = [rustix::process::geteuid().as_raw(); 4];
    let own_namespace = mount_namespace("/proc/self".as_ref());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(in_proc) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = entry.path();
        let in_cgroup = in_cgroup_of_spc(&process)?;
        let is_near = || own_namespace.is_some() && mount_namespace(&process) == own_namespace;
        if !in_cgroup && !is_near() {
            continue;
        }
        let Some(status) = Status::read(&process)? else {
            continue;
        };
        let is_candidate = in_cgroup || users == Users::Any || status.has_users(own_users);
        match status.ids.get(depth) {
            Some(own) if *own != own_pid && is_candidate => {
                found.push(ProcessId { in_proc, own: *own });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Returns whether a process is in a cgroup that spc made on the host (`host/cgroup.rs`).
fn in_cgroup_of_spc(process: &Path) -> io::Result<bool> {
    let text = default_if_gone(procfs::read_text(process.join("cgroup")))?;
    Ok(text.lines().any(|line| {
        let path = line.splitn(3, ':').nth(2);
        path.is_some_and(is_cgroup_of_spc)
    }))
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

/// Returns whether another process of root runs a program of this name, in any container.
pub fn is_running(program: &str) -> bool {
    let own = std::process::id().to_string();
    let named = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        let pid = entry.file_name();
        let is_named = exe.file_name()? == program && pid != *own;
        let status = is_named.then(|| Status::read(&entry.path()).ok()?)??;
        Some(status.has_users([0; 4]))
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .any(|entry| named(entry) == Some(true))
}

/// Returns whether a process other than `except` is in the mount namespace with this inode number.
pub fn any_in_namespace(namespace: u64, except: i32) -> bool {
    let is_in = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        Some(mount_namespace(&entry.path())? == namespace && pid != except)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .any(|entry| is_in(entry) == Some(true))
}

/// Returns the inode number of the mount namespace of a process, by its directory in `/proc`.
fn mount_namespace(process: &Path) -> Option<u64> {
    Some(fs::metadata(process.join("ns/mnt")).ok()?.ino())
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
