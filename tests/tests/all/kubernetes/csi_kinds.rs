//! The CSI drivers with what the kernel mounts: NFS, SMB, CephFS, RBD and iSCSI volumes, on a
//! virtual machine. The drivers' sockets cannot be reached from outside of it, so each call is done
//! by a worker, as `spc serve` starts it.

use anyhow::{Context, Result, ensure};
use lab::Samba;
use serde_json::{Value, json};
use tonic::Code;

use crate::kubernetes::csi::{CsiVolume, DISK, MAPPED, SHARE, target};
use crate::kubernetes::flexvolume::size;
use crate::kubernetes::kubelet::ROOT;
use crate::support::{VmSpc, with_lab};

const MIB: u64 = 1 << 20;

/// Size of a disk before and after it has grown, in MiB. The smallest xfs has 300.
const SIZES: [u64; 2] = [320, 640];

/// Driver on the virtual machine.
struct Driver<'a> {
    spc: &'a VmSpc<'a>,
    name: &'static str,
}

impl Driver<'_> {
    /// Does a call of kubelet, and returns the answer.
    fn answer(&self, volume: &CsiVolume, call: &Value) -> Result<Value> {
        let driver = self.name.split('.').next();
        let job = json!({
            "driver": driver, "volume_id": volume.id, "milliseconds": 60_000, "call": call,
        });
        self.spc.put("/tmp/job", job.to_string().as_bytes())?;
        let answer = self.spc.sh("spc csi-work </tmp/job")?.ok()?.text();
        Ok(serde_json::from_str(&answer)?)
    }

    fn call(&self, volume: &CsiVolume, call: &Value) -> Result<Value> {
        let answer = self.answer(volume, call)?;
        ensure!(answer["code"] == 0, "{call}: {answer}");
        Ok(answer)
    }

    /// Access mode of the volumes of this driver.
    fn access(&self) -> &'static str {
        match self.name {
            DISK => "SINGLE_NODE_MULTI_WRITER",
            _ => "MULTI_NODE_MULTI_WRITER",
        }
    }

    /// Stages the volume, publishes it for two pods, which share it, and takes it away again. Each
    /// call but the last is made twice.
    fn life(
        &self,
        volume: &CsiVolume,
        shown: &str,
        used: impl FnOnce(&str) -> Result<()>,
    ) -> Result<()> {
        let host = &self.spc.host;
        let before = host.mountinfo()?.len();
        let staging = volume.staging(self.name);
        let pods = ["1-1", "1-2"].map(target);
        for directory in &pods {
            host.run(&["mkdir", "-p", directory.trim_end_matches("/mount")])?
                .ok()?;
        }
        host.run(&["mkdir", "-p", &staging])?.ok()?;
        let stage = json!({"Stage": {"target": staging, "volume": {
            "fs_type": volume.fs_type,
            "attributes": volume.attributes,
            "mount_options": volume.mount_options,
            "secrets": volume.secrets,
            "access": self.access(),
            "read_only": false,
            "group": (!volume.group.is_empty()).then_some(&volume.group),
        }}});
        let publish = |target: &String| {
            json!({"Publish": {
                "staged_at": staging, "target": target, "access": self.access(), "read_only": false,
            }})
        };
        for call in [stage, publish(&pods[0]), publish(&pods[1])] {
            for _ in 0..2 {
                self.call(volume, &call)?;
            }
        }
        for directory in pods.iter().chain([&staging]) {
            let on = self.spc.on(directory)?;
            ensure!(on.len() == 1 && on[0].fstype == shown, "{on:?}");
        }
        let entries = host.mountinfo()?.len();
        ensure!(entries == before + 3, "{before} entries became {entries}");
        host.write(format!("{}/shared", pods[0]), b"by a pod")?;
        ensure!(host.read(format!("{}/shared", pods[1]))? == b"by a pod");
        let stats = self.call(volume, &json!({"Stats": {"target": pods[0]}}))?;
        ensure!(stats["stats"]["total"] != 0, "{stats}");
        used(&pods[0])?;
        for target in &pods {
            for _ in 0..2 {
                self.call(volume, &json!({"Unpublish": {"target": target}}))?;
            }
            ensure!(!host.run(&["test", "-e", target])?.success());
        }
        for _ in 0..2 {
            self.call(volume, &json!({"Unstage": {"target": staging}}))?;
        }
        ensure!(host.mountinfo()?.len() == before);
        Ok(())
    }

    /// Checks that the volume grows after its server has grown the disk, and not before.
    fn grows(
        &self,
        volume: &CsiVolume,
        directory: &str,
        make_larger: impl FnOnce(u64) -> Result<()>,
    ) -> Result<()> {
        let [was, larger] = SIZES.map(|size| size * MIB);
        let call = json!({"Expand": {"target": directory, "bytes": larger}});
        let early = self.answer(volume, &call)?;
        ensure!(early["code"] == Code::OutOfRange as i32, "{early}");
        ensure!(size(&self.spc.host, directory)? <= was);
        make_larger(SIZES[1])?;
        for _ in 0..2 {
            let answer = self.call(volume, &call)?;
            ensure!(answer["bytes"] == larger, "{answer}");
        }
        let is = size(&self.spc.host, directory)?;
        ensure!(is > was + was / 2, "{was} bytes became {is}");
        Ok(())
    }
}

fn on_shares(spc: &VmSpc<'_>) -> Result<()> {
    let share = Driver { spc, name: SHARE };
    let server = lab::knfsd().context("no server")?.vm();
    let address = server.address().to_string();
    let attributes = [("servers", address.as_str()), ("path", "data")];
    let mut volume = CsiVolume::new("nfs-1", "nfs", &attributes);
    volume.mount_options = vec!["vers=4.2".into(), "noatime".into()];
    share.life(&volume, "nfs4", |directory| {
        let remove =
            format!("grep '{directory} .*noatime' /proc/1/mounts && rm {directory}/shared");
        spc.host.sh(&remove)?.ok().map(drop)
    })?;

    let ceph = lab::ceph().context("no cluster")?;
    let source = format!("{}:/app", ceph.address());
    let attributes = [("source", source.as_str()), ("options", "name=app")];
    let volume =
        CsiVolume::new("ceph-1", "ceph", &attributes).secret("secret", &ceph.secret("app")?);
    share.life(&volume, "ceph", |directory| {
        let seen = ceph.sh("cat /mnt/app/shared")?;
        ensure!(seen == "by a pod", "{seen}");
        spc.host
            .run(&["rm", &format!("{directory}/shared")])?
            .ok()
            .map(drop)
    })?;
    spc.is_clean()
}

fn on_smb(spc: &VmSpc<'_>, samba: &Samba<'_>) -> Result<()> {
    let mapped = Driver { spc, name: MAPPED };
    let source = format!("//{}/data", samba.address());
    let mut volume = CsiVolume::new("smb-1", "smb3", &[("source", &source)])
        .secret("username", "alice")
        .secret("password", Samba::PASSWORD);
    volume.group = "2000".into();
    mapped.life(&volume, "smb3", |directory| {
        ensure!(samba.host().read("/srv/data/shared")? == b"by a pod");
        let group = spc.host.run(&["stat", "-c", "%g", directory])?.ok()?;
        ensure!(group.text() == "2000", "{group}");
        Ok(())
    })?;
    spc.is_clean()
}

fn on_disks(spc: &VmSpc<'_>) -> Result<()> {
    let disk = Driver { spc, name: DISK };
    let ceph = lab::ceph().context("no cluster")?;
    let [before, _] = SIZES;
    ceph.sh(&format!("rbd create --size {before}M rbd/csi"))?;
    let options = format!("id=disk,mon={},x-spc.mkfs", ceph.address());
    let attributes = [("source", "rbd:rbd/csi"), ("options", options.as_str())];
    let volume =
        CsiVolume::new("rbd-1", "xfs", &attributes).secret("secret", &ceph.secret("disk")?);
    disk.life(&volume, "xfs", |directory| {
        disk.grows(&volume, directory, |size| {
            ceph.sh(&format!("rbd resize --size {size}M rbd/csi"))
                .map(drop)
        })
    })?;
    ensure!(ceph.watchers("csi")?.is_empty());

    let lio = lab::lio().context("no server")?;
    let iqn = "iqn.2026-01.org.example:csi";
    lio.disk("csi.img", before * MIB, |_| Ok(()))?;
    let device = "modprobe loop && ln -s $(losetup -f --show /srv/csi.img) /srv/csi";
    lio.vm().sh(device)?.ok()?;
    lio.target(iqn, &["csi"])?;
    let (server, path) = (lio.vm().address().to_string(), format!("{iqn}/0"));
    let attributes = [
        ("servers", server.as_str()),
        ("path", path.as_str()),
        ("options", "x-spc.mkfs"),
    ];
    let volume = CsiVolume::new("iscsi-1", "ext4", &attributes);
    disk.life(&volume, "ext4", |directory| {
        disk.grows(&volume, directory, |size| {
            let larger = format!("truncate -s {size}M /srv/csi.img && losetup -c /srv/csi");
            lio.vm().sh(&larger)?.ok().map(drop)
        })
    })?;
    ensure!(lio.sessions(iqn)?.is_empty());
    let left = spc.host.sh("ls -A /run/spc/devices")?.text();
    ensure!(left.is_empty(), "left attachments: {left}");
    spc.is_clean()
}

#[test]
#[ignore = "long: five kinds on an emulated machine, a minute of CPU"]
fn volumes_that_the_kernel_mounts_are_shared_by_pods_and_grow() {
    with_lab(|lab| {
        let spc = VmSpc::privileged(lab)?;
        spc.host.run(&["mkdir", "-p", ROOT])?.ok()?;
        on_shares(&spc).context("NFS and CephFS")?;
        on_smb(&spc, &lab.samba()?).context("SMB")?;
        on_disks(&spc).context("disks")
    });
}
