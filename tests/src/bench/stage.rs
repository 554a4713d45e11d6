//! The measured host. The container runs as its documents say, its programs are installed, and
//! util-linux's mount(8) replaces busybox's.

use anyhow::{Context, Result};
use std::fs;

use crate::{AnyHost, Base, Engine, Host, HostOptions, Lab, image};

/// Mount point of the measured mounts.
pub const WAY: &str = "/mnt/way";

/// The recommended run line.
const RUN: &str = "docker run -d --name spc --cap-drop=ALL --cap-add=SYS_ADMIN --cap-add=SYS_CHROOT --cap-add=SYS_PTRACE \
    --device=/dev/fuse --pid=host --net=host localhost/spc:latest";

/// A host with the container.
pub struct Stage<'lab> {
    pub host: Host<'lab>,
    /// The container's first process, as the host numbers it.
    pub pid: String,
    /// The container's first process, as the machine numbers it.
    pub first: i32,
}

impl<'lab> Stage<'lab> {
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let host = lab.host(HostOptions::default())?;
        host.start(Engine::Docker, Some(&image(Base::Trixie)?))?;
        let links =
            "ln -sf ../libexec/util-linux/mount ../libexec/util-linux/umount /usr/bin/ && mkdir";
        host.sh(&format!("{links} {WAY} && {RUN}"))?.ok()?;
        // The shim redirects mounts on this target that nsenter starts in the container.
        let target = format!("mkdir {WAY} && echo target {WAY} >>/etc/spc/shim.conf");
        host.run(&["docker", "exec", "spc", "sh", "-c", &target])?
            .ok()?;
        host.sh("docker exec spc spc install")?.ok()?;
        // The first mount makes what later mounts reuse, so it is not measured.
        let first = format!("spc mount -t tmpfs first {WAY} && spc umount {WAY}");
        host.sh(&first)?.ok()?;
        let inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", "spc"];
        let pid = host.run(&inspect)?.ok()?.text().trim().to_owned();
        let first = outside(&host, &pid)?;
        Ok(Self { host, pid, first })
    }

    /// Returns the `nsenter` command into the container.
    pub fn enter(&self) -> String {
        format!("/usr/bin/nsenter --mount=/proc/{}/ns/mnt", self.pid)
    }

    /// Returns the number of entries of all mount tables of the host, containers included.
    pub fn entries(&self) -> Result<usize> {
        Ok(self.host.tables()?.values().sum())
    }

    /// Returns the proportional memory (Pss) of a process of the host, in KiB.
    pub fn memory(process: i32) -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Returns the memory of all processes of the host whose name passes, in KiB, and their number.
    pub fn memory_of(&self, passes: impl Fn(&str) -> bool) -> (f64, usize) {
        let named = |process: &i32| {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            passes(name.trim_end())
        };
        let processes = self.host.processes().into_iter().filter(named);
        let sizes: Vec<f64> = processes.filter_map(Self::memory).collect();
        (sizes.iter().sum(), sizes.len())
    }
}

/// Returns the number of a host's process on the machine.
fn outside(host: &Host<'_>, pid: &str) -> Result<i32> {
    let ids = |process: i32| -> Option<Vec<String>> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(line.split_whitespace().map(str::to_owned).collect())
    };
    let level = ids(host.pid()).context("the host has ended")?.len();
    let is = |process: &i32| {
        ids(*process)
            .and_then(|ids| ids.get(level - 1).cloned())
            .as_deref()
            == Some(pid)
    };
    let mut processes = host.processes().into_iter();
    processes
        .find(is)
        .context("the container has no first process")
}
