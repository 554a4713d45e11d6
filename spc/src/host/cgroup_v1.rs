//! Cgroups of version 1 (cgroups(7)). A host may have them instead of cgroup2 or beside it, and a
//! process is in one cgroup of each hierarchy. A daemon that stays in only one of the container's
//! cgroups may be killed with the container, and is subject to its limits and devices.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::mountinfo;

/// Cgroup of a process in one hierarchy: its controllers or name, and its path.
type Membership = (String, String);

/// Parses the lines of `/proc/PID/cgroup` about hierarchies of version 1.
fn memberships(text: &str) -> Vec<Membership> {
    let parse = |line: &str| {
        let (id, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        (id != "0").then(|| (controllers.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

fn read(process: &str) -> io::Result<Vec<Membership>> {
    fs::read_to_string(format!("/proc/{process}/cgroup")).map(|text| memberships(&text))
}

/// Returns whether this process is in another cgroup of version 1 than process 1.
///
/// # Errors
/// Fails if `/proc` cannot be read.
pub fn differs_from_first() -> io::Result<bool> {
    Ok(read("self")? != read("1")?)
}

/// Moves a process out of the container's cgroups of version 1, for a process in the namespaces of
/// process 1. Where systemd has moved this process, the other one follows; elsewhere it joins
/// process 1. Returns whether the host has such hierarchies.
///
/// # Errors
/// Fails if a hierarchy is not mounted, or the kernel does not allow the move.
pub fn leave(pid: i32, moved_by_systemd: bool) -> Result<bool> {
    let fail = |e: io::Error| Error::system(format!("cannot move process {pid}")).because(e);
    let (current, own) = (
        read(&pid.to_string()).map_err(fail)?,
        read("self").map_err(fail)?,
    );
    let first = read("1").map_err(fail)?;
    for (controllers, path) in &current {
        let of = |all: &'_ [Membership]| {
            let mut all = all.iter();
            all.find(|(other, _)| other == controllers)
                .map(|(_, path)| path.clone())
        };
        let moved = of(&own).filter(|own| moved_by_systemd && own != path);
        let Some(to) = moved.or_else(|| of(&first)).filter(|to| to != path) else {
            continue;
        };
        move_to(pid, controllers, &to).map_err(|e| {
            Error::system(format!("process {pid} stays in the cgroup {controllers}:{path}"))
                .because(e)
                .hint("it would end with the container: mount the hierarchy below /sys/fs/cgroup on the host")
        })?;
    }
    Ok(!current.is_empty())
}

fn move_to(pid: i32, controllers: &str, path: &str) -> io::Result<()> {
    let base = mount_point(controllers)?.ok_or(io::ErrorKind::NotFound)?;
    let procs = base.join(path.trim_start_matches('/')).join("cgroup.procs");
    fs::OpenOptions::new()
        .write(true)
        .open(procs)
        .and_then(|mut file| io::Write::write_all(&mut file, pid.to_string().as_bytes()))
}

/// Returns the mount point of the hierarchy with these controllers, or with this name.
fn mount_point(controllers: &str) -> io::Result<Option<PathBuf>> {
    let has_all = |options: &str| {
        let has = |one: &str| options.split(',').any(|option| option == one);
        controllers.split(',').all(has)
    };
    let mut mounts = mountinfo::read_file("/proc/self/mountinfo")?.into_iter();
    let found = mounts.find(|entry| {
        entry.fs_type == "cgroup" && entry.root == Path::new("/") && has_all(&entry.options)
    });
    Ok(found.map(|entry| entry.target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_of_version_1_are_listed() {
        let text = "12:cpu,cpuacct:/kubepods/pod1\n2:name=systemd:/a:b\n0::/kubepods/pod1\n";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            memberships(text),
            [
                pair("cpu,cpuacct", "/kubepods/pod1"),
                pair("name=systemd", "/a:b")
            ]
        );
        assert!(memberships("0::/init.scope\n").is_empty());
    }
}
