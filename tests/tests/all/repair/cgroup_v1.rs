//! A host with cgroups of version 1 beside cgroup2.

use anyhow::{Context, Result, ensure};
use lab::{Lab, VmOptions};
use serde_json::{Value, json};

use crate::support::{VmSpc, until, with_lab};

const TARGET: &str = "/mnt/data";

/// Puts the container's first process in a cgroup of each hierarchy, where it has no `/dev/fuse`,
/// as a container runtime does.
const CONFINE: &str = r#"set -e
    mkdir -p /mnt/data /srv/source
    for controller in devices freezer; do
        mkdir -p /run/v1/$controller
        mount -t cgroup -o $controller $controller /run/v1/$controller
        mkdir /run/v1/$controller/pod
    done
    echo 'c 10:229 rwm' >/run/v1/devices/pod/devices.deny
    for controller in devices freezer; do
        echo "$1" >/run/v1/$controller/pod/cgroup.procs
    done"#;

/// Checks that a daemon which `spc serve` started is in none of the container's cgroups.
fn leaves_every_hierarchy(lab: &'static Lab) -> Result<()> {
    let spc = VmSpc::booted(lab, VmOptions::default())?;
    let host = &spc.host;
    // Not in the cgroup `spc`, where runc would put it.
    host.start_changed(|config| config["linux"]["cgroupsPath"] = json!("/pod"))?;
    host.run(&["sh", "-c", CONFINE, "confine", &spc.pid()?])?
        .ok()?;
    // A directory of the host: the daemon runs in a client root file system.
    let source = "/host/srv/source";
    spc.mount(&["-t", "fuse.bindfs", source, TARGET])?;
    let daemon = || -> Result<Value> { Ok(spc.record(TARGET)?["daemon"][0].clone()) };
    let first = daemon()?;
    host.sh(&format!("kill -9 {first}"))?.ok()?;
    let repaired = until("the mount is repaired", || {
        let record = spc.record(TARGET)?;
        Ok(record["state"] == "ok" && record["daemon"][0] != first)
    });
    repaired.with_context(|| spc.log().unwrap_or_default())?;
    let cgroups = host.sh(&format!("cat /proc/{}/cgroup", daemon()?))?.ok()?;
    ensure!(!cgroups.text().contains("pod"), "{cgroups}");
    ensure!(cgroups.text().contains("0::/spc/mnt-data"), "{cgroups}");
    let tasks = host.sh("cat /sys/fs/cgroup/spc/mnt-data/pids.max")?;
    ensure!(
        tasks.text().trim() == "1024",
        "processes are not limited: {tasks}"
    );
    spc.umount(TARGET)?;
    spc.is_clean()
}

#[test]
fn a_repaired_daemon_leaves_every_cgroup_of_the_container() {
    with_lab(leaves_every_hierarchy);
}
