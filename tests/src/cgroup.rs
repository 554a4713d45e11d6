//! The cgroup that holds every process of a lab, to find and kill all of them.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{mountinfo, times};

const PREFIX: &str = "spc-lab-";

/// A directory of the version 2 hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates the cgroup of a lab whose supervisor is this process.
    pub fn create_lab() -> Result<Self> {
        let root = hierarchy()?;
        sweep(&root);
        // PIDs alone repeat: another PID namespace may share the hierarchy.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        Self(root).child(&format!("{PREFIX}{}-{now:x}", std::process::id()))
    }

    /// Refers to an existing cgroup.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the directory of the cgroup.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Creates a cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.0.join(name);
        fs::create_dir(&path)
            .with_context(|| format!("cannot create cgroup: {}", path.display()))?;
        Ok(Self(path))
    }

    /// Moves the calling process here.
    pub fn join(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Enables all available controllers for children. A hybrid machine has hardly any; controllers
    /// that fail are left out.
    pub fn delegate(&self) -> Result<()> {
        let controllers = fs::read_to_string(self.0.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            let _ = self.write("cgroup.subtree_control", &format!("+{controller}"));
        }
        Ok(())
    }

    /// Returns the processes here and below, numbered by the caller's PID namespace.
    pub fn processes(&self) -> Vec<i32> {
        let own = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        let mut pids: Vec<i32> = own
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
            .collect();
        for child in self.children() {
            pids.extend(child.processes());
        }
        pids
    }

    /// Returns the cgroups below this one, except names that begin with `without`.
    pub fn below(&self, without: &str) -> Vec<PathBuf> {
        let ours = |child: &Self| {
            let name = child.0.file_name().unwrap_or_default();
            !name.to_string_lossy().starts_with(without)
        };
        let children = self.children().into_iter().filter(ours);
        children
            .flat_map(|child| [child.below(without), vec![child.0]].concat())
            .collect()
    }

    /// Returns the CPU time of all processes that are or were here and below.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).unwrap_or_default();
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        Duration::from_micros(
            usage
                .and_then(|usage| usage.parse().ok())
                .unwrap_or_default(),
        )
    }

    /// Prints time, CPU time and memory of a start whose processes are here and below. Shared
    /// memory counts more than once.
    pub fn say_cost(&self, what: &str, started: Instant) {
        let resident = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let kilobytes: u64 = self.processes().into_iter().filter_map(resident).sum();
        let (time, cpu, memory) = (started.elapsed(), self.cpu(), kilobytes * 1024 / 1_000_000);
        eprintln!("lab: {what} in {time:.1?}, {cpu:.1?} of CPU, {memory} MB of memory");
        times::note(what, time, cpu);
    }

    /// Kills all processes here and below, at once.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Kills the remaining processes and removes the directories.
    pub fn remove(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let _ = self.kill();
            match self.remove_empty() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    let path = self.0.display();
                    return Err(error)
                        .with_context(|| format!("cgroup does not become empty: {path}"));
                }
                Err(_) => sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Removes the directories, if they have no process.
    pub fn remove_empty(&self) -> std::io::Result<()> {
        for child in self.children() {
            child.remove_empty()?;
        }
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn children(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return Vec::new();
        };
        let directories = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| Self(entry.path())).collect()
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

/// Returns the mount point of the version 2 hierarchy: `/sys/fs/cgroup`, or
/// `/sys/fs/cgroup/unified` beside version 1.
fn hierarchy() -> Result<PathBuf> {
    match mountinfo::of_process(std::process::id() as i32)?
        .into_iter()
        .find(|mount| mount.fstype == "cgroup2")
    {
        Some(mount) => Ok(mount.target),
        None => bail!("no cgroup2 is mounted\nhint: mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// Removes empty cgroups of labs whose supervisor was killed.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let Some((maker, _)) = rest.and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if !Path::new("/proc").join(maker).exists() {
            let _ = Cgroup(entry.path()).remove_empty();
        }
    }
}
