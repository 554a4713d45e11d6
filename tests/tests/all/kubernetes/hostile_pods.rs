//! Pods whose volumes ask for more than a pod may have.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::kubernetes::csi::{Client, CsiVolume, MAPPED, serve};
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{Spc, until, with_lab};

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

#[test]
fn a_source_of_a_pod_adds_no_options() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        // Where a machine of a cloud gets its identity from.
        let metadata = "ip addr add 169.254.169.254/32 dev lo; \
            sleep 60 | nc -l -p 80 >/tmp/asked 2>/dev/null &";
        host.sh(metadata)?.ok()?;
        let given = [
            ("source", "bucket:/directory,iam_role=auto"),
            ("options", "url=http://127.0.0.1:9,retries=1"),
            ("timeout", "20"),
        ];
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &given));
        let mounted = kubelet.set_up(&pod);
        std::thread::sleep(Duration::from_secs(2));
        let asked = host.sh("cat /tmp/asked")?.text();
        ensure!(asked.is_empty(), "s3fs asks for an identity: {asked}");
        let refused = mounted.err().context("mounted without a key")?;
        ensure!(
            refused.to_string().contains("security credentials"),
            "{refused}"
        );
        // mount.cifs adds the directory to the options for the kernel.
        let given = [("source", "//127.0.0.1/share/directory,sec=krb5,cruid=1000")];
        let volume = Volume::new("cifs", &given).secret("username", "a");
        let pod = Pod::new("1-1", volume.secret("password", "b"));
        let refused = kubelet.set_up(&pod).err();
        let refused = refused.context("mounted as another user")?.to_string();
        ensure!(refused.contains("bad source"), "{refused}");
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
