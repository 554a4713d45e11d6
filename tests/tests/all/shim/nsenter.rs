//! The original's usage: the container as its users started it, and nsenter that runs mount(8) in
//! the container's mount namespace. The launcher is not involved; the shim decides by its settings
//! file.

use anyhow::{Result, ensure};
use lab::{Base, Cluster, Engine, Lab, Output, Propagation};

use crate::kinds::gluster::main_job;
use crate::support::{Spc, entries, until, with_gluster};

const ORIGINAL: [&str; 14] = [
    "--privileged",
    "--net=host",
    "-e",
    "sysimage=/host",
    "-v",
    "/:/host",
    "-v",
    "/dev:/dev",
    "-v",
    "/proc:/proc",
    "-v",
    "/var:/var",
    "-v",
    "/run:/run",
];

/// A user on the host with nsenter.
struct Nsenter<'a> {
    spc: Spc<'a>,
    option: String,
    source: String,
    before: usize,
}

impl<'a> Nsenter<'a> {
    fn start(
        lab: &'a Lab,
        cluster: &Cluster<'_>,
        propagation: Propagation,
        base: Base,
    ) -> Result<Self> {
        let spc = Spc::start(lab, propagation, Engine::Docker, base, &ORIGINAL)?;
        // `spc serve` has its socket, and so hears of mounts from the start.
        until("spc serve listens", || {
            Ok(spc.sh("test -S /spc/report.sock")?.success())
        })?;
        Ok(Self {
            option: format!("--mount=/proc/{}/ns/mnt", spc.pid()?),
            source: format!("{}:/vol", cluster.nodes()[0].host().address()),
            before: entries(&spc.host)?,
            spc,
        })
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        self.spc
            .host
            .run(&[&["nsenter", &self.option], words].concat())
    }

    fn mount(&self, target: &str) -> Result<()> {
        self.run(&["mount", "-t", "glusterfs", &self.source, target])?
            .ok()?;
        Ok(())
    }

    /// Checks for one mount of the volume on the host, and no other new entry in any table.
    fn is_mounted(&self, target: &str) -> Result<()> {
        let on = self.spc.on(target)?;
        ensure!(
            on.len() == 1 && on[0].fstype == "fuse.glusterfs" && on[0].source == *self.source,
            "mounts on {target}: {on:?}"
        );
        until("its copies in the container are gone", || {
            Ok(entries(&self.spc.host)? == self.before + 1)
        })
    }

    /// Checks that no mount, entry or daemon is left.
    fn is_gone(&self) -> Result<()> {
        until("every entry is gone", || {
            Ok(entries(&self.spc.host)? == self.before)
        })?;
        until("the daemon ends", || Ok(self.daemons()?.is_empty()))
    }

    fn daemons(&self) -> Result<String> {
        Ok(self
            .spc
            .host
            .sh("grep -ls ^/usr/sbin/glusterfs /proc/[0-9]*/cmdline")?
            .text())
    }
}

fn original(nsenter: &Nsenter<'_>, cluster: &Cluster<'_>, name: &str, version: &str) -> Result<()> {
    let host = &nsenter.spc.host;
    let mount = nsenter.run(&["mount", "--version"])?.ok()?.text();
    ensure!(mount.contains(version), "not mount(8) {version}: {mount}");

    nsenter.mount("/mnt")?;
    nsenter.is_mounted("/mnt")?;
    ensure!(!nsenter.daemons()?.is_empty(), "a mount without a daemon");
    host.write(format!("/mnt/{name}"), b"written on the host\n")?;
    for node in cluster.nodes() {
        let copy = node.host().read(node.brick("vol").join(name))?;
        ensure!(copy == b"written on the host\n", "on a brick: {copy:?}");
    }
    nsenter.run(&["umount", "/mnt"])?.ok()?;
    nsenter.is_gone()?;
    // The second umount finds nothing. It fails, and touches no other mount.
    nsenter.run(&["umount", "/mnt"])?.code(32)?;

    nsenter.mount("/mnt")?;
    nsenter.is_mounted("/mnt")?;
    host.run(&["umount", "/mnt"])?.ok()?;
    nsenter.is_gone()?;

    // busybox's own nsenter. The path is absolute, or busybox would run its built-in mount.
    let busybox = |words: &[&str]| {
        let start = ["busybox", "nsenter", &nsenter.option];
        host.run(&[&start, words].concat())
    };
    let mount = ["/usr/bin/mount", "-t", "glusterfs", &nsenter.source, "/mnt"];
    busybox(&mount)?.ok()?;
    nsenter.is_mounted("/mnt")?;
    busybox(&["/usr/bin/umount", "/mnt"])?.ok()?;
    nsenter.is_gone()
}

/// Checks names that differ between container and host, and mounts that must stay in the container.
fn corners(nsenter: &Nsenter<'_>) -> Result<()> {
    let host = &nsenter.spc.host;
    host.run(&["mkdir", "-p", "/opt/host-only"])?.ok()?;

    // mount.glusterfs looks for its target in the container, and finds the host's below /host.
    let (below, above) = ("/host/opt/host-only", "/opt/host-only");
    nsenter.mount(below)?;
    nsenter.is_mounted(above)?;
    nsenter.run(&["umount", below])?.ok()?;
    nsenter.is_gone()?;

    // Any spelling that the helper accepts; mount.glusterfs is a shell script and accepts few.
    let (below, above) = ("/host/opt/a b,c\nd", "/opt/a b,c\nd");
    host.run(&["mkdir", above])?.ok()?;
    nsenter
        .run(&["bindfs", "/host/opt/host-only", below])?
        .ok()?;
    let on = nsenter.spc.on(above)?;
    ensure!(on.len() == 1 && on[0].fstype == "fuse", "{on:?}");
    nsenter.run(&["umount", below])?.ok()?;
    nsenter.is_gone()?;

    // Only the container has this directory. Nothing is mounted anywhere, and the container's log
    // has the reason. The error text is mount.glusterfs's own, which only checks that its target
    // exists.
    nsenter.run(&["mount", "-t", "glusterfs", &nsenter.source, "/etc/spc"])?;
    nsenter.is_gone()?;
    let log = host.run(&["docker", "logs", "spc"])?.ok()?.error_text();
    let failure =
        "decision=failed call=mount type=fuse.glusterfs target=/etc/spc host=/etc/spc errno=2";
    ensure!(log.contains(failure), "not in the log: {log}");

    let missing = nsenter.source.replace("/vol", "/no-such-volume");
    let output = nsenter.run(&["mount", "-t", "glusterfs", &missing, below])?;
    ensure!(!output.success(), "mounted what there is not: {output}");
    nsenter.is_gone()?;

    // A type that the settings do not name stays in the container.
    nsenter
        .run(&["mount", "-t", "ramfs", "own", "/mnt"])?
        .ok()?;
    let table = nsenter.spc.mounts()?;
    let own = |line: &&String| line.contains(" /mnt ") && line.contains(" - ramfs own ");
    ensure!(table.iter().filter(own).count() == 1, "{table:#?}");
    ensure!(nsenter.spc.on("/mnt")?.is_empty(), "on the host as well");
    nsenter.run(&["umount", "/mnt"])?.ok()?;
    nsenter.is_gone()
}

#[test]
fn nsenter_mounts_with_mount_2_41() {
    with_gluster(|lab, cluster| {
        let nsenter = Nsenter::start(lab, cluster, Propagation::Shared, Base::Trixie)?;
        original(&nsenter, cluster, "nsenter-2.41", "2.41")
    });
}

#[test]
fn nsenter_mounts_with_mount_2_38() {
    with_gluster(|lab, cluster| {
        let nsenter = Nsenter::start(lab, cluster, Propagation::Shared, Base::Bookworm)?;
        original(&nsenter, cluster, "nsenter-2.38", "2.38")
    });
}

#[test]
fn nsenter_mounts_on_a_private_root() {
    with_gluster(|lab, cluster| {
        let nsenter = Nsenter::start(lab, cluster, Propagation::Private, Base::Trixie)?;
        original(&nsenter, cluster, "nsenter-private", "2.41")?;
        corners(&nsenter)?;
        // The launcher works there as well.
        main_job(&nsenter.spc, cluster, "/mnt/original")
    });
}
