//! CephFS from a real cluster, and that cluster itself.

use anyhow::{Context, Result, ensure};
use lab::Ceph;

use crate::support::{Spc, until, with_lab};

/// Runs a test's body with the lab and its Ceph; where there is no lab, that has been said.
fn with_ceph(body: impl FnOnce(&'static lab::Lab, &'static Ceph<'static>) -> Result<()>) {
    with_lab(|lab| body(lab, lab::ceph().context("no cluster")?));
}

#[test]
fn a_ceph_cluster_keeps_files_and_images() {
    with_ceph(|_, ceph| {
        let host = ceph.host();
        host.write("/mnt/other/file", b"of the administrator")?;
        host.sh("sync -f /mnt/other/file")?.ok()?;
        let inode = ceph.sh("stat -c %i /mnt/other/file")?.trim().parse()?;
        ensure!(ceph.bytes(inode)? == b"of the administrator");
        let sessions = ceph.sessions("admin")?;
        ensure!(
            sessions.len() == 1 && sessions[0].root == "/" && !sessions[0].kernel,
            "{sessions:?}"
        );
        ceph.sh("rbd create --size 16M rbd/cluster")?;
        ensure!(ceph.watchers("cluster")?.is_empty());
        let keyring = ceph.keyring("app")?;
        ensure!(keyring.contains(ceph.secret("app")?.trim()), "{keyring}");
        Ok(())
    });
}

#[test]
fn ceph_fuse_takes_over_where_the_kernel_has_no_ceph() {
    with_ceph(|lab, ceph| {
        let spc = Spc::least(lab)?;
        spc.put("/etc/app.secret", ceph.secret("app")?.as_bytes())?;
        let source = format!("{}:/app", ceph.monitors());
        let mount = [
            "-v",
            "-t",
            "ceph",
            "-o",
            "name=app,secretfile=/etc/app.secret",
            &source,
        ];
        spc.host.sh("mkdir -p /mnt/x")?;
        eprintln!(
            "{}",
            spc.exec(&[&["spc", "explain"], &mount[1..], &["/mnt/x"]].concat())?
        );
        eprintln!(
            "{}",
            spc.exec(&[&["spc", "mount"], &mount[..], &["/mnt/x"]].concat())?
        );
        eprintln!("{:?}", spc.on("/mnt/x")?);
        eprintln!("{}", spc.exec(&["spc", "umount", "/mnt/x"])?);
        for o in ["ro,noexec", "noatime", "remount"] {
            let o = format!("name=app,secretfile=/etc/app.secret,{o}");
            let mount = ["-v", "-t", "ceph", "-o", &o, &source];
            eprintln!(
                "{}",
                spc.exec(&[&["spc", "mount"], &mount[..], &["/mnt/x"]].concat())?
            );
            eprintln!("{:?}", spc.on("/mnt/x")?);
            eprintln!("{}", spc.sh("ls /spc/targets; LIBMOUNT_FSTAB=/dev/null; export LIBMOUNT_FSTAB; for i in /spc/targets/*; do [ -d $i ] && mount -vi -o remount $i; done")?);
            eprintln!("{:?}", spc.on("/mnt/x")?);
            eprintln!("{}", spc.exec(&["spc", "umount", "/mnt/x"])?);
        }

        spc.life(&mount, "/mnt/ceph", ["fuse.ceph-fuse", "ceph-fuse"], |_| {
            let host = &spc.host;
            host.write("/mnt/ceph/file", b"kept")?;
            ensure!(host.read("/mnt/ceph/file")? == b"kept");
            eprintln!("{:?}", ceph.sessions("app")?);
            Ok(())
        })?;
        until("the session is gone", || {
            Ok(ceph.sessions("app")?.is_empty())
        })
    });
}
