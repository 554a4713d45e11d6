//! Automount units of systemd with an idle timeout, for every kind with a helper.

use anyhow::{Context, Result, ensure};
use lab::Samba;

use crate::install::boot::{SYSTEMD, install, mounted};
use crate::kinds::fuse::sshd;
use crate::support::{VmSpc, until, with_gluster};

#[test]
#[ignore = "long: two minutes, with servers of six kinds"]
fn automounts_of_every_kind_expire() {
    with_gluster(|lab, cluster| {
        let (samba, store, ssh) = (lab.samba()?, lab.s3()?, sshd(lab)?);
        let ceph = lab::ceph().context("no cluster")?;
        let nfs = lab::knfsd().context("no server")?;
        let spc = VmSpc::boot(lab, SYSTEMD)?;
        let vm = &spc.host;
        install(&spc)?;
        let smb_user = format!("username=alice\npassword={}\n", Samba::PASSWORD);
        for (file, secret) in [
            ("/etc/smb", smb_user.into_bytes()),
            ("/etc/ceph.secret", ceph.secret("app")?.into_bytes()),
            (
                "/etc/ceph.keyring",
                format!("{}\n", ceph.keyring("app")?).into_bytes(),
            ),
            ("/etc/ssh.key", ssh.read("/root/key")?),
            ("/etc/s3.key", store.key().as_bytes().to_vec()),
        ] {
            vm.write(file, &secret)?;
            vm.run(&["chmod", "600", file])?.ok()?;
        }
        vm.run(&["mkdir", "-p", "/srv/source"])?.ok()?;

        let app = format!("{}:/app", ceph.address());
        let ssh_source = format!("root@{}:/srv/data", ssh.address());
        let s3_options = format!(
            "passwd_file=/host/etc/s3.key,use_path_request_style,url={}",
            store.open()
        );
        let volume = format!("{}:/vol", cluster.nodes()[0].host().address());
        let export = format!("{}:/data", nfs.vm().address());
        let share = format!("//{}/data", samba.address());
        let kinds = [
            ("glusterfs", volume.as_str(), "", "fuse.glusterfs"),
            ("nfs", &export, "", "nfs4"),
            ("cifs", &share, "credentials=/etc/smb", "cifs"),
            ("ceph", &app, "name=app,secretfile=/etc/ceph.secret", "ceph"),
            (
                "fuse.ceph-fuse",
                &app,
                "name=app,keyring=/host/etc/ceph.keyring",
                "fuse.ceph-fuse",
            ),
            (
                "fuse.sshfs",
                &ssh_source,
                "IdentityFile=/host/etc/ssh.key,StrictHostKeyChecking=no,BatchMode=yes",
                "fuse.sshfs",
            ),
            ("fuse.s3fs", "bucket", &s3_options, "fuse.s3fs"),
            ("fuse.bindfs", "/host/srv/source", "", "fuse"),
        ];
        let common = "noauto,_netdev,x-systemd.automount,x-systemd.idle-timeout=2";
        let line = |(fs_type, source, options, _): &(&str, &str, &str, &str)| {
            format!("{source} /mnt/{fs_type} {fs_type} {common},{options} 0 0\n")
        };
        let fstab: String = kinds.iter().map(line).collect();
        vm.write("/etc/fstab", fstab.as_bytes())?;
        vm.sh("systemctl daemon-reload && systemctl start remote-fs.target && systemctl start $(systemctl list-unit-files --no-legend 'mnt-*.automount' | cut -d' ' -f1)")?
            .ok()?;
        for (fs_type, source, _, shown) in kinds {
            let target = format!("/mnt/{fs_type}");
            let used = || -> Result<()> {
                let list = vm.run(&["ls", &target])?;
                ensure!(list.success(), "{}", vm.sh("journalctl -b | tail -20")?);
                let on = mounted(vm, &target)?;
                ensure!(on == ["autofs", shown], "{on:?}");
                until("it has expired", || Ok(mounted(vm, &target)? == ["autofs"]))
            };
            used().with_context(|| format!("{fs_type} {source}"))?;
        }
        Ok(())
    });
}
