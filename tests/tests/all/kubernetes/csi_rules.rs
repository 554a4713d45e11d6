//! The CSI drivers: who may have which volume, with which group and secrets.

use anyhow::ensure;
use tonic::Code;

use crate::kubernetes::csi::{
    Client, CsiVolume, MAPPED, SHARE, is_clean, record, refused, serve, target,
};
use crate::kubernetes::flexvolume::sshd;
use crate::support::{with_gluster, with_lab};

#[test]
fn secrets_of_volumes_are_neither_recorded_nor_logged() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        let password = "Correct,Horse 7";
        let server = sshd(lab, password)?;
        let source = format!("root@{}:/srv/data", server.address());
        let attributes = [
            ("source", source.as_str()),
            ("options", "StrictHostKeyChecking=no"),
        ];
        let volume = CsiVolume::new("pv-1", "fuse.sshfs", &attributes);
        let wrong = volume.clone().secret("password", "Wrong,Horse 8");
        let failed = driver.stage(&spc, &wrong)?;
        let reason = failed
            .as_ref()
            .err()
            .map(|status| status.message().to_owned());
        ensure!(reason.is_some_and(|reason| !reason.contains("Horse")));
        refused(failed, Code::Internal, "cannot mount")?;
        is_clean(&spc)?;
        let mut told = volume.clone();
        told.mount_options = vec![format!("password={password}")];
        refused(driver.stage(&spc, &told)?, Code::InvalidArgument, "")?;

        let volume = volume.secret("password", &format!("{password}\n"));
        driver.stage(&spc, &volume)??;
        driver.publish(&spc, &volume, "1-1")??;
        ensure!(spc.host.read(format!("{}/file", target("1-1")))? == b"on the server");
        let records = spc.host.sh("cat /run/spc/mounts/*")?.text();
        ensure!(!records.contains("Horse"), "{records}");
        let log = spc.log()?;
        ensure!(!log.contains("Horse"), "{log}");
        driver.unpublish(&volume, "1-1")?;
        driver.unstage(&volume)?;
        is_clean(&spc)
    });
}

#[test]
fn inline_volumes_have_the_rules_for_pods() {
    with_gluster(|lab, cluster| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let before = spc.host.mountinfo()?.len();
        spc.host.run(&["mkdir", "-p", "/srv/node"])?.ok()?;
        for (fs_type, attributes, words) in [
            ("bind", &[("source", "/srv/node")][..], "bind"),
            ("tmpfs", &[("source", "a")], "size"),
            (
                "ceph",
                &[
                    ("source", "192.0.2.1:/"),
                    ("options", "secretfile=/etc/shadow"),
                ],
                "secretfile",
            ),
            ("glusterfs", &[("source", "192.0.2.1:/v --log-file=/x")], ""),
        ] {
            let volume = CsiVolume::new("csi-1", fs_type, attributes);
            let reply = driver.publish_inline(&spc, &volume, "1-1")?;
            refused(reply, Code::InvalidArgument, words)?;
            ensure!(!spc.host.run(&["test", "-e", &target("1-1")])?.success());
        }
        // The administrator may.
        let allowed = CsiVolume::new("pv-1", "bind", &[("source", "/srv/node")]);
        driver.stage(&spc, &allowed)??;
        driver.unstage(&allowed)?;

        let address = cluster.nodes()[0].host().address().to_string();
        let attributes = [("servers", address.as_str()), ("path", "vol")];
        let volume = CsiVolume::new("csi-2", "glusterfs", &attributes);
        driver.publish_inline(&spc, &volume, "1-1")??;
        driver.publish_inline(&spc, &volume, "1-1")??;
        ensure!(spc.host.mountinfo()?.len() == before + 1);
        let inline = record(&spc, &target("1-1"))?;
        ensure!(
            inline["sandboxed"] == true && inline["csi"]["role"] == "inline",
            "{inline}"
        );
        spc.host.write(format!("{}/inline", target("1-1")), b"x")?;
        driver.unpublish(&volume, "1-1")?;
        ensure!(!spc.host.run(&["test", "-e", &target("1-1")])?.success());
        is_clean(&spc)
    });
}

#[test]
fn the_group_of_a_pod_is_an_option_of_mounts_without_owners() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        let server = sshd(lab, "hunter2")?;
        let owners = "stat -c %u:%g:%a /srv/data /srv/data/file";
        let before = server.sh(owners)?.ok()?.text();
        let source = format!("root@{}:/srv/data", server.address());
        let attributes = [
            ("source", source.as_str()),
            ("options", "StrictHostKeyChecking=no"),
        ];
        let mut volume =
            CsiVolume::new("pv-1", "fuse.sshfs", &attributes).secret("password", "hunter2");
        volume.group = "2000".into();
        driver.stage(&spc, &volume)??;
        driver.publish(&spc, &volume, "1-1")??;
        let seen = spc.host.sh(&format!("stat -c %g {}/file", target("1-1")))?;
        ensure!(seen.ok()?.text() == "2000");
        ensure!(server.sh(owners)?.ok()?.text() == before);
        driver.unpublish(&volume, "1-1")?;
        driver.unstage(&volume)?;
        // bindfs has no such option.
        let mut volume = CsiVolume::new("pv-2", "fuse.bindfs", &[("source", "/host/srv")]);
        volume.group = "2000".into();
        refused(
            driver.stage(&spc, &volume)?,
            Code::FailedPrecondition,
            "group",
        )?;
        is_clean(&spc)
    });
}
