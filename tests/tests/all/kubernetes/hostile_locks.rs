//! Clients of pods whose memory cannot be read in time.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::kubernetes::hostile_clients::take_over;
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{Spc, until, with_lab};

#[test]
#[ignore = "long: all processors are busy"]
fn a_client_of_a_pod_does_not_delay_other_unmounts() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let host = &spc.host;
        host.run(&["mkdir", "-p", "/srv/source"])?.ok()?;
        let kubelet = Kubelet::start(host)?;
        take_over(host, "hostile_lock", &["-pthread"])?;
        let mount = [
            "-t",
            "fuse.bindfs",
            "-o",
            "x-mount.mkdir,allow_other,x-spc.repair=no",
            "/host/srv/source",
            "/mnt/bound",
        ];
        let unmount = || {
            spc.mount(&mount)?;
            let began = Instant::now();
            let unmounted = spc.exec(&["spc", "umount", "/mnt/bound"])?;
            anyhow::Ok((began.elapsed(), unmounted))
        };
        let (before, _) = unmount()?;
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        kubelet.set_up(&pod)?;
        std::thread::sleep(Duration::from_secs(8));
        let after = unmount();
        let done = kubelet.call(&["unmount", &pod.directory()]);
        host.sh("kill -9 $(pidof s3fs)")?;
        until("no process is left", || {
            Ok(host.run(&["pidof", "s3fs"])?.text().is_empty())
        })?;
        let (took, unmounted) = after?;
        ensure!(
            unmounted.success() && took < before + Duration::from_secs(3),
            "{before:?}, then {took:?}: {unmounted}"
        );
        done.map(drop)
    });
}
