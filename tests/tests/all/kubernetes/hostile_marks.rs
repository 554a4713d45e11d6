//! Clients of pods that write marks of spc into their environments.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::kubernetes::hostile_clients::{run_with_few_files, take_over};
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{Spc, until, with_lab};

/// Arguments of `spc mount` for a mount beside the pod's.
const MOUNT: [&str; 6] = [
    "-t",
    "fuse.bindfs",
    "-o",
    "x-mount.mkdir,allow_other",
    "/host/srv/source",
    "/mnt/bound",
];

#[test]
fn many_marks_of_a_pod_do_not_stop_repairs() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        spc.remove()?;
        let host = &spc.host;
        host.run(&["mkdir", "-p", "/srv/source"])?.ok()?;
        run_with_few_files(&spc)?;
        install(&spc)?;
        let kubelet = Kubelet::start(host)?;
        take_over(host, "hostile_marks", &[])?;
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        kubelet.set_up(&pod)?;
        std::thread::sleep(Duration::from_secs(6));
        spc.mount(&MOUNT)?;
        let before = spc.on("/mnt/bound")?.pop().context("not mounted")?;
        host.sh("kill -9 $(cat /sys/fs/cgroup/spc/mnt-bound/cgroup.procs)")?
            .ok()?;
        let repaired = until("the mount is repaired", || {
            Ok(matches!(&spc.on("/mnt/bound")?[..], [mount] if mount.id != before.id))
        });
        let log = spc.log()?;
        let unmounted = spc.exec(&["spc", "umount", "-l", "/mnt/bound"]);
        let done = kubelet.call(&["unmount", &pod.directory()]);
        until("no process is left", || {
            Ok(host.run(&["pidof", "s3fs"])?.text().is_empty())
        })?;
        repaired.context(log)?;
        unmounted?.ok()?;
        done.map(drop)
    });
}

#[test]
fn long_marks_of_a_pod_use_little_memory() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let host = &spc.host;
        host.run(&["mkdir", "-p", "/srv/source"])?.ok()?;
        let kubelet = Kubelet::start(host)?;
        take_over(host, "hostile_marks", &["-DLONG"])?;
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        kubelet.set_up(&pod)?;
        std::thread::sleep(Duration::from_secs(6));
        spc.mount(&MOUNT)?;
        std::thread::sleep(Duration::from_secs(5));
        let peak = "for process in $(pidof spc); do
            tr '\\0' ' ' </proc/$process/cmdline | grep -q 'spc serve' && sed -n 's/VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$process/status; done | sort -n | tail -n 1";
        let peak = host.sh(peak)?.text();
        let unmounted = spc.exec(&["spc", "umount", "-l", "/mnt/bound"]);
        let done = kubelet.call(&["unmount", &pod.directory()]);
        until("no process is left", || {
            Ok(host.run(&["pidof", "s3fs"])?.text().is_empty())
        })?;
        // In Kubernetes it may have 256 MiB.
        let peak: u64 = peak.trim().parse().context(peak)?;
        ensure!(peak < 64 * 1024, "{peak} kB");
        unmounted?.ok()?;
        done.map(drop)
    });
}
