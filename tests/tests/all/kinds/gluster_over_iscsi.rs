//! A file of a GlusterFS volume as a disk. Three servers export it by iSCSI, each through its own
//! client of the volume.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Node, Output};

use crate::support::{VmSpc, until, with_lab};

const IQN: &str = "iqn.2026-01.org.example:blocks";

/// Turns off client caches: a write that stays in one server's memory would be invisible to the
/// other servers.
const NO_CACHES: [&str; 6] = [
    "io-cache",
    "open-behind",
    "quick-read",
    "read-ahead",
    "stat-prefetch",
    "write-behind",
];

/// Creates the file. Every server exports it as LUN 1; LUN 0 is tgtd itself.
fn export(cluster: &Cluster<'_>) -> Result<()> {
    cluster.create_volume("blocks")?;
    let first = cluster.nodes()[0].host();
    for cache in NO_CACHES {
        let option = format!("performance.{cache}");
        let set = [
            "gluster",
            "--mode=script",
            "volume",
            "set",
            "blocks",
            &option,
            "off",
        ];
        first.run(&set)?.ok()?;
    }
    let address = first.address();
    first
        .sh(&format!(
            "mkdir -p /mnt/v && mount -t glusterfs {address}:/blocks /mnt/v && truncate -s 320M /mnt/v/disk && umount /mnt/v"
        ))?
        .ok()?;
    cluster.nodes().iter().try_for_each(serve)
}

/// Starts tgtd on a server. The numbers of target and LUN form the volume's identity, and are the
/// same on all servers.
fn serve(node: &Node<'_>) -> Result<()> {
    let address = node.host().address();
    let adm = "tgtadm --lld iscsi";
    let script = format!(
        "set -e
        mkdir -p /var/run/tgtd && tgtd
        for i in $(seq 100); do {adm} --mode sys --op show >/dev/null 2>&1 && break; sleep 0.1; done
        {adm} --mode target --op new --tid 1 --targetname {IQN}
        {adm} --mode logicalunit --op new --tid 1 --lun 1 --bstype glfs --backing-store blocks@{address}:disk --bsopts 'logfile=/var/log/glfs.log;loglevel=3'
        {adm} --mode target --op bind --tid 1 --initiator-address ALL"
    );
    node.host().sh(&script)?.ok()?;
    Ok(())
}

/// Number of initiators that are logged in to a server.
fn sessions(node: &Node<'_>) -> Result<usize> {
    let show = "tgtadm --lld iscsi --mode target --op show";
    let text = node.host().sh(show)?.ok()?.text();
    Ok(text.matches("I_T nexus:").count())
}

/// Stops tgtd on a server.
fn stop_tgtd(node: &Node<'_>) -> Result<()> {
    let kill = "busybox killall -9 tgtd 2>/dev/null; true";
    node.host().sh(kill)?.ok()?;
    Ok(())
}

#[test]
fn writes_survive_the_stop_of_one_of_three_servers() {
    with_lab(|lab| {
        let cluster = lab.gluster()?;
        export(&cluster)?;
        let (nodes, spc) = (cluster.nodes(), &VmSpc::privileged(lab)?);
        let client = Client { nodes, spc };
        client.uses_every_server().context("with three servers")?;
        let stopped = client.writes_on().context("while a server stops")?;
        client.uses_again(stopped).context("with the server back")?;
        stop_tgtd(stopped)?;
        client.does_with_two().context("with two servers")?;
        spc.is_clean()
    });
}

/// A machine that mounts the disk.
struct Client<'a> {
    nodes: &'a [Node<'a>],
    spc: &'a VmSpc<'a>,
}

impl<'a> Client<'a> {
    fn portals(&self) -> Vec<String> {
        let address = |node: &Node<'_>| node.host().address().to_string();
        self.nodes.iter().map(address).collect()
    }

    /// Mounts the disk on /mnt/data, with a limit that allows for mkfs: it writes a log of 64 MiB,
    /// and three servers acknowledge each block.
    fn mount(&self) -> Result<Output> {
        let source = format!("iscsi:{}/{IQN}/1", self.portals().join(","));
        let words = [
            "runc",
            "exec",
            "spc",
            "spc",
            "mount",
            "--timeout",
            "300",
            "-t",
            "xfs",
            "-o",
            "x-spc.mkfs",
            &source,
            "/mnt/data",
        ];
        let limit = Duration::from_secs(330);
        self.spc.host.command(&words).limit(limit).run()?.ok()
    }

    /// Multipath state of the disk.
    fn status(&self) -> Result<String> {
        Ok(self.spc.exec(&["dmsetup", "status"])?.ok()?.text())
    }

    /// Checks for a session of each server, a multipath device, and data on each brick.
    fn uses_every_server(&self) -> Result<()> {
        let host = &self.spc.host;
        host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let mounted = self.mount()?;
        eprintln!("mkfs and mount: {:.1?}", mounted.elapsed);
        for node in self.nodes {
            ensure!(sessions(node)? == 1, "{}", node.host().name());
        }
        let device = self.spc.on("/mnt/data")?[0].source.clone();
        ensure!(
            device.to_string_lossy().starts_with("/dev/dm-"),
            "{device:?}"
        );
        let text = "written with all of them";
        host.write("/mnt/data/before", text.as_bytes())?;
        host.sh("sync")?.ok()?;
        for node in self.nodes {
            let brick = node.brick("blocks").join("disk");
            let find = ["grep", "-aqF", text, &brick.to_string_lossy()];
            node.host().run(&find)?.ok().context("a brick")?;
        }
        Ok(())
    }

    /// Stops the server in use, with its bricks, while files are written. Checks that no write
    /// fails, and returns the server.
    fn writes_on(&self) -> Result<&'a Node<'a>> {
        let host = &self.spc.host;
        let used = active(&self.status()?).context("no path is in use")?;
        let find = format!(
            "cat /sys/dev/block/{used}/device/../../connection*/iscsi_connection/*/persistent_address"
        );
        let used = host.sh(&find)?.ok()?.text();
        let portals = self.portals();
        let stopped = portals.iter().position(|portal| *portal == used.trim());
        let stopped = &self.nodes[stopped.with_context(|| format!("not a portal: {used}"))?];
        let write = "for i in $(seq 40); do echo line $i >/mnt/data/$i && sync || echo failed >>/tmp/failed; done; touch /tmp/done";
        host.sh(&format!("({write}) >/dev/null 2>&1 & true"))?
            .ok()?;
        until("three files are written", || {
            Ok(host.sh("test -e /mnt/data/3")?.status == lab::Status::Code(0))
        })?;
        stop_tgtd(stopped)?;
        stopped.stop()?;
        let began = Instant::now();
        for _ in 0..6 {
            let done = until("everything is written", || {
                Ok(host.sh("test -e /tmp/done")?.status == lab::Status::Code(0))
            });
            if done.is_ok() {
                break;
            }
        }
        let (took, status) = (began.elapsed(), self.status()?);
        eprintln!("written {took:.1?} after a server stopped: {status}");
        let failed = host.sh("cat /tmp/failed")?.text();
        ensure!(failed.is_empty(), "writes failed: {failed}");
        let lines = host.sh("cat /mnt/data/[0-9]* | grep -c ^line")?.ok()?;
        ensure!(lines.text() == "40", "{lines}");
        ensure!(self.status()?.contains(" F "), "{}", self.status()?);
        Ok(stopped)
    }

    /// Starts the server again, and checks that its path is used; then unmounts.
    fn uses_again(&self, stopped: &Node<'_>) -> Result<()> {
        stopped.start()?;
        serve(stopped)?;
        until("the client has a session with the server again", || {
            Ok(sessions(stopped)? == 1)
        })?;
        // A mount event wakes `spc serve`, which otherwise checks once per minute.
        self.spc
            .host
            .sh("mkdir -p /mnt/t && mount -t tmpfs t /mnt/t")?
            .ok()?;
        until("the path is in use again", || {
            Ok(!self.status()?.contains(" F "))
        })?;
        self.spc.umount("/mnt/data")?;
        for node in self.nodes {
            ensure!(sessions(node)? == 0, "{}", node.host().name());
        }
        let status = self.status()?;
        ensure!(status.contains("No devices"), "{status}");
        Ok(())
    }

    /// Mounts without one server, which the command reports.
    fn does_with_two(&self) -> Result<()> {
        let again = self.mount()?;
        ensure!(
            again.error_text().contains("is attached without"),
            "{again}"
        );
        ensure!(self.spc.host.read("/mnt/data/40")? == b"line 40\n");
        self.spc.umount("/mnt/data").map(drop)
    }
}

/// Disk of the path group in use, from `dmsetup status`.
fn active(status: &str) -> Option<String> {
    let words: Vec<&str> = status.split_whitespace().collect();
    // Format: GROUP 0 DISKS SELECTOR-WORDS DISK STATE …
    let at = words.iter().position(|word| *word == "A")?;
    let disks = words[at..].iter().find(|word| word.contains(':'))?;
    Some((*disks).to_owned())
}
