//! A file of a GlusterFS volume as a disk. Three servers export it by iSCSI, each through its own
//! client of the volume.

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Node};

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

#[test]
fn one_of_three_servers_stops_while_data_is_written() {
    with_lab(|lab| {
        let cluster = lab.gluster()?;
        export(&cluster)?;
        let nodes = cluster.nodes();
        let spc = VmSpc::privileged(lab)?;
        let host = &spc.host;
        host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let portals: Vec<_> = nodes
            .iter()
            .map(|node| node.host().address().to_string())
            .collect();
        let source = format!("iscsi:{}/{IQN}/1", portals.join(","));
        let mount = [
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
        // mkfs writes a log of 64 MiB, and three servers acknowledge each block.
        let mount = || {
            let limit = std::time::Duration::from_secs(330);
            host.command(&mount).limit(limit).run()
        };
        let mounted = mount()?.ok()?;
        eprintln!("made and mounted in {:.1?}", mounted.elapsed);
        for node in nodes {
            ensure!(sessions(node)? == 1, "{}", node.host().name());
        }
        let device = spc.on("/mnt/data")?[0].source.clone();
        ensure!(
            device.to_string_lossy().starts_with("/dev/dm-"),
            "{device:?}"
        );

        host.write("/mnt/data/before", b"written with all of them")?;
        host.sh("sync")?.ok()?;
        for node in nodes {
            let brick = node.brick("blocks").join("disk");
            let find = [
                "grep",
                "-aqF",
                "written with all of them",
                &brick.to_string_lossy(),
            ];
            node.host().run(&find)?.ok().context("a brick")?;
        }

        // The server in use stops, with its bricks, while files are written.
        let status = || anyhow::Ok(spc.exec(&["dmsetup", "status"])?.ok()?.text());
        let used = active(&status()?).context("no way is in use")?;
        let find = format!(
            "cat /sys/dev/block/{used}/device/../../connection*/iscsi_connection/*/persistent_address"
        );
        let used = host.sh(&find)?.ok()?.text();
        let stopped = portals.iter().position(|portal| *portal == used.trim());
        let stopped = &nodes[stopped.with_context(|| format!("whose is {used}"))?];
        let write = "for i in $(seq 40); do echo line $i >/mnt/data/$i && sync || echo failed >>/tmp/failed; done; touch /tmp/done";
        host.sh(&format!("({write}) >/dev/null 2>&1 & true"))?
            .ok()?;
        until("it writes", || {
            Ok(host.sh("test -e /mnt/data/3")?.status == lab::Status::Code(0))
        })?;
        stopped
            .host()
            .sh("busybox killall -9 tgtd 2>/dev/null; true")?
            .ok()?;
        stopped.stop()?;
        let began = std::time::Instant::now();
        for _ in 0..6 {
            let done = until("everything is written", || {
                Ok(host.sh("test -e /tmp/done")?.status == lab::Status::Code(0))
            });
            if done.is_ok() {
                break;
            }
        }
        eprintln!(
            "written {:.1?} after a server stopped: {}",
            began.elapsed(),
            status()?
        );
        let failed = host.sh("cat /tmp/failed")?.text();
        ensure!(failed.is_empty(), "writes failed: {failed}");
        let lines = host.sh("cat /mnt/data/[0-9]* | grep -c ^line")?.ok()?;
        ensure!(lines.text() == "40", "{lines}");
        ensure!(status()?.contains(" F "), "{}", status()?);

        // The server returns, and is used again when it is needed.
        stopped.start()?;
        serve(stopped)?;
        until("it is logged in to again", || Ok(sessions(stopped)? == 1))?;
        // A mount event wakes `spc serve`, which otherwise checks once per minute.
        host.sh("mkdir -p /mnt/t && mount -t tmpfs t /mnt/t")?
            .ok()?;
        until("the way is in use again", || Ok(!status()?.contains(" F ")))?;

        spc.umount("/mnt/data")?;
        for node in nodes {
            ensure!(sessions(node)? == 0, "{}", node.host().name());
        }
        ensure!(status()?.contains("No devices"), "{}", status()?);

        // With one server gone for good, the other two are enough.
        stopped
            .host()
            .sh("busybox killall -9 tgtd 2>/dev/null; true")?
            .ok()?;
        let again = mount()?.ok()?;
        ensure!(again.error_text().contains("goes without"), "{again}");
        ensure!(host.read("/mnt/data/40")? == b"line 40\n");
        spc.umount("/mnt/data")?;
        spc.is_clean()
    });
}

/// Disk of the path group in use, from `dmsetup status`.
fn active(status: &str) -> Option<String> {
    let words: Vec<&str> = status.split_whitespace().collect();
    // Format: GROUP 0 DISKS SELECTOR-WORDS DISK STATE …
    let at = words.iter().position(|word| *word == "A")?;
    let disks = words[at..].iter().find(|word| word.contains(':'))?;
    Some((*disks).to_owned())
}
