//! Pods that choose the names of their volumes.

use anyhow::ensure;

use crate::kubernetes::hostile_clients::take_over;
use crate::kubernetes::kubelet::{DRIVER, Kubelet, Pod, ROOT, Volume, install};
use crate::support::{Spc, until, with_lab};

#[test]
fn pods_with_long_names_of_volumes_share_no_cgroup() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        take_over(host, "hostile_quiet", &[])?;
        // A label of 63 characters, as Kubernetes allows it.
        let name = format!("a{}b", "-".repeat(61));
        for uid in ["1-0", "2-0"] {
            let pod = Pod::new(uid, Volume::new("fuse.s3fs", &[("source", "bucket")]));
            let directory = format!("{ROOT}/pods/{uid}/volumes/{DRIVER}/{name}");
            host.run(&["mkdir", "-p", &directory])?.ok()?;
            kubelet.call(&["mount", &directory, &kubelet.options(&pod)])?;
        }
        let of_each =
            "for process in $(pidof s3fs); do sed -n s/^0:://p /proc/$process/cgroup; done";
        let cgroups = host.sh(of_each)?.ok()?.text();
        let mut distinct: Vec<_> = cgroups.lines().collect();
        distinct.dedup();
        ensure!(distinct.len() == 2, "both pods are in {cgroups}");
        Ok(())
    });
}

#[test]
fn the_end_of_a_pod_leaves_the_daemon_of_a_volume_in_use_beside_a_pod_with_the_same_name() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        take_over(host, "hostile_quiet", &[])?;
        let name = format!("a{}b", "-".repeat(61));
        host.run(&["mkdir", "-p", "/mnt/bound"])?.ok()?;
        for uids in [&["1-0"][..], &["2-0", "3-0"]] {
            let directory = |uid: &str| format!("{ROOT}/pods/{uid}/volumes/{DRIVER}/{name}");
            for uid in uids {
                let pod = Pod::new(uid, Volume::new("fuse.s3fs", &[("source", "bucket")]));
                host.run(&["mkdir", "-p", &directory(uid)])?.ok()?;
                kubelet.call(&["mount", &directory(uid), &kubelet.options(&pod)])?;
            }
            // Something still uses the volume of the first pod.
            let script = "exec unshare -m sh -c 'mount --make-rprivate / && mount -o bind $1 /mnt/bound && echo ready; for i in $(seq 40); do stat -c %F /mnt/bound 2>&1; sleep 0.5; done' x $1";
            let mut user = host.spawn(&["sh", "-c", script, "user", &directory(uids[0])])?;
            until("the volume is in use", || {
                Ok(user.so_far()?.0.starts_with(b"ready\n"))
            })?;
            kubelet.call(&["unmount", &directory(uids[0])])?;
            std::thread::sleep(std::time::Duration::from_secs(4));
            let (seen, _) = user.so_far()?;
            let seen = String::from_utf8_lossy(&seen).into_owned();
            let last = seen.lines().last().unwrap_or_default().to_owned();
            eprintln!("{uids:?}: {last}");
            drop(user);
            ensure!(last == "directory", "{uids:?}: {seen}");
        }
        Ok(())
    });
}
