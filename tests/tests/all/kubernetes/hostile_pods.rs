//! Pods whose volumes ask for more than a pod may have.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Libc, program};

use crate::kubernetes::csi::{Client, CsiVolume, MAPPED, serve};
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, driver, install};
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
            ensure!(
                refused.to_string().contains("it is a directory"),
                "{refused}"
            );
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

#[test]
fn pods_do_not_use_up_the_helper_slots_of_a_server() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let host = &spc.host;
        // Accepts connections at port 22, and says nothing.
        let silent = std::fs::read(program("hostile_hold", Libc::Gnu, &["-static"])?)?;
        host.write("/opt/hold", &silent)?;
        host.sh("chmod 755 /opt/hold; ip addr add 198.51.100.1/32 dev lo")?
            .ok()?;
        let _silent = host.spawn(&["/opt/hold", "silent"])?;
        let json = r#"{"kubernetes.io/fsType":"fuse.sshfs","source":"root@198.51.100.1:/","timeout":"3600"}"#;
        let mut calls = Vec::new();
        for number in 1..=8 {
            let target = format!("/var/lib/kubelet/pods/1-{number}/volumes/spc~spc/data");
            host.run(&["mkdir", "-p", &target])?.ok()?;
            calls.push(host.spawn(&[&driver(), "mount", &target, json])?);
        }
        std::thread::sleep(Duration::from_secs(6));
        // At another port of the same server, the administrator is refused at once.
        let began = Instant::now();
        let mount = "mkdir -p /mnt/b; docker exec spc spc mount --timeout 20 -t fuse.sshfs \
            -o port=9 root@198.51.100.1:/ /mnt/b";
        let refused = host.command(&["sh", "-c", mount])?;
        let refused = refused.limit(Duration::from_secs(60)).run()?;
        ensure!(
            refused.error_text().contains("Connection refused") && began.elapsed().as_secs() < 10,
            "{refused}"
        );
        Ok(())
    });
}
