//! iSCSI disks on a node with pods whose clients are hostile.

use anyhow::{Context, Result, ensure};
use lab::Lio;

use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install_there};
use crate::support::images::{MIB, ext4};
use crate::support::{VmSpc, with_lab};

/// Makes a target that asks for a password.
fn guarded(lio: &Lio<'_>, iqn: &str, disk: &str) -> Result<()> {
    lio.disk(disk, 64 * MIB, ext4)?;
    lio.target(iqn, &[disk])?;
    lio.tell(&format!(
        "/iscsi/{iqn}/tpg1 set attribute authentication=1\n/iscsi/{iqn}/tpg1 set auth userid=me password=sesame-123456\n"
    ))
}

#[test]
#[ignore = "long: a virtual machine and an iSCSI server"]
fn a_client_of_a_pod_sees_no_password_of_an_iscsi_target() {
    with_lab(|lab| {
        let lio = lab::lio().context("no server")?;
        let iqn = "iqn.2026-01.org.example:records";
        guarded(lio, iqn, "records-0")?;
        let spc = VmSpc::privileged(lab)?;
        install_there(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        let source = format!("iscsi:{}/{iqn}/0", lio.vm().address());
        let line = format!("allow ext4 {source} user=me\n");
        host.run(&["mkdir", "-p", "/etc/spc"])?.ok()?;
        host.write("/etc/spc/flexvolume.conf", line.as_bytes())?;
        let volume = Volume::new("ext4", &[("source", &source)]);
        let volume = volume.secret("password", "sesame-123456");
        let disk = Pod::new("1-0", volume);
        kubelet.set_up(&disk)?;
        // A client that its server has taken over.
        let path = host.run(&["realpath", "/var/lib/spc/current/usr/bin/s3fs"])?;
        let look = "#!/bin/sh\ngrep -rs 'auth.password =' /var/lib /etc | sed s/sesame-/password:/ >&2\nexit 1\n";
        host.write(path.ok()?.text(), look.as_bytes())?;
        let other = Pod::new("1-1", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        let failed = kubelet.set_up(&other).err().context("mounted")?.to_string();
        ensure!(!failed.contains("password:123456"), "{failed}");
        kubelet.tear_down(&disk)
    });
}
