//! Pods whose volumes ask for more than a pod may have.

use anyhow::{Context, Result, ensure};

use crate::kubernetes::csi::{Client, CsiVolume, MAPPED, serve};
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{until, with_lab};

#[test]
fn options_of_a_pod_do_not_make_its_volume_a_bind_of_the_node() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.sh("mkdir -p /srv; echo secret >/srv/secret-of-the-node")?
            .ok()?;
        for (fs_type, source, options) in [
            ("nfs", "/srv", "bind"),
            ("nfs4", "/", "ro,rbind"),
            ("cifs", "/etc", "bind"),
            ("ceph", "/", "rbind"),
            ("glusterfs", "/srv", "bind"),
        ] {
            let given = [("source", source), ("options", options)];
            let pod = Pod::new("1-0", Volume::new(fs_type, &given));
            let refused = kubelet.set_up(&pod).err();
            let refused = refused.context("bound a directory of the node")?;
            ensure!(refused.to_string().contains("of type bind"), "{refused}");
            ensure!(spc.on(pod.directory())?.is_empty());
        }
        let driver = Client::register(&spc, MAPPED)?;
        let given = [("source", "/srv"), ("options", "bind")];
        let volume = CsiVolume::new("csi-1", "nfs", &given);
        let refused = driver.publish_inline(&spc, &volume, "1-1")?;
        ensure!(refused.is_err(), "bound a directory of the node");
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
