//! The CSI controller with CephFS, whose directories have quotas, and NFS.

use anyhow::{Context, Result, ensure};
use lab::Knfsd;
use rustix::fs::{XattrFlags, setxattr};
use serde_json::{Value, json};
use tonic::Code;

use crate::kinds::nfs::with_client;
use crate::kubernetes::csi::{Client, CsiVolume, SHARE, refused, target};
use crate::kubernetes::csi_controller::{
    Controller, SETTINGS, persistent, request, serve, set_backends,
};
use crate::support::{VmSpc, with_lab};

const MIB: i64 = 1 << 20;

#[test]
fn quotas_of_cephfs_limit_volumes_and_grow_with_them() {
    with_lab(|lab| {
        let ceph = lab::ceph().context("no cluster")?;
        let spc = serve(lab, &json!([]))?;
        // The controller may set quotas (`p`), and nodes may not.
        let users = "mkdir -p /mnt/requested && for user in provisioner:rwp node:rw; do \
             ceph auth get-or-create client.${user%:*} mon 'allow r' \
             mds \"allow ${user#*:} path=/requested\" osd 'allow rw tag cephfs data=cephfs' \
             >/dev/null; done";
        ceph.sh(users)?;
        let key = format!("{}\n", ceph.secret("provisioner")?);
        spc.host.write(format!("{SETTINGS}/key"), key.as_bytes())?;
        let backend = json!({
            "name": "fs",
            "type": "ceph",
            "source": format!("{}:/requested", ceph.monitors()),
            "options": "name=provisioner",
            "nodeOptions": "name=node",
            "secrets": {"secret": "/etc/controller/key"},
            "quota": "ceph",
        });
        set_backends(&spc, &json!([backend]))?;
        let controller = Controller::new(&spc)?;
        ensure!(controller.capabilities()? == [1, 13, 9]);
        let class = [("backend", "fs"), ("owner", "1000:1000")];
        let volume = controller.create(request("pvc-1", "web", &class, 8 * MIB))?;
        ensure!(volume.capacity_bytes == 8 * MIB, "{volume:?}");
        let read = |path: &str| {
            let script = "import os, sys; print(os.getxattr(sys.argv[1], 'ceph.quota.max_bytes'))";
            ceph.sh(&format!("python3 -c \"{script}\" /mnt/requested/{path}"))
        };
        ensure!(
            read("pvc-1")? == format!("b'{}'", 8 * MIB),
            "{}",
            read("pvc-1")?
        );

        let node = Client::register(&spc, SHARE)?;
        let on_node = CsiVolume {
            secrets: [("secret".to_owned(), ceph.secret("node")?)].into(),
            ..persistent(&volume)
        };
        node.stage(&spc, &on_node)??;
        node.publish(&spc, &on_node, "1-1")??;
        let directory = target("1-1");
        let write = |name: &str, megabytes: u32| {
            let file = format!("{directory}/{name}");
            let output = spc.host.sh(&format!(
                "dd if=/dev/zero of={file} bs=1M count={megabytes} conv=fsync 2>&1"
            ))?;
            anyhow::Ok(output)
        };
        write("small", 4)?.ok()?;
        // Clients notice soon, not at once.
        let full = write("large", 64)?;
        ensure!(
            !full.success() && full.to_string().contains("quota exceeded"),
            "{full}"
        );
        let outside = format!("/proc/{}/root{directory}", spc.host.pid());
        let raised = setxattr(outside, "ceph.quota.max_bytes", b"0", XattrFlags::empty());
        ensure!(raised.is_err(), "a pod has raised its quota");

        ensure!(controller.expand(&volume.volume_id, 256 * MIB, 0)? == 256 * MIB);
        ensure!(controller.expand(&volume.volume_id, 16 * MIB, 0)? == 256 * MIB);
        let smaller = controller.expand(&volume.volume_id, 16 * MIB, 32 * MIB);
        refused(smaller.map(drop), Code::OutOfRange, "")?;
        refused(
            controller.expand("fs/none", MIB, 0).map(drop),
            Code::NotFound,
            "",
        )?;
        // The same request as before is the same volume.
        controller.create(request("pvc-1", "web", &class, 8 * MIB))?;
        ensure!(read("pvc-1")? == format!("b'{}'", 256 * MIB));
        write("large", 32)?.ok()?;
        node.unpublish(&on_node, "1-1")?;
        node.unstage(&on_node)?;
        controller.delete(&volume.volume_id)?;
        ensure!(
            ceph.sh("find /mnt/requested -mindepth 3; ls /mnt/requested")?
                .is_empty()
        );

        // Whoever may not set quotas makes no volume, and leaves nothing.
        let mut without = backend;
        without["options"] = "name=node".into();
        let key = ceph.secret("node")?;
        spc.host.write(format!("{SETTINGS}/key"), key.as_bytes())?;
        set_backends(&spc, &json!([without]))?;
        let failed = controller
            .create(request("pvc-2", "web", &class, MIB))
            .map(drop);
        refused(failed, Code::Internal, "needs the capability `p`")?;
        ensure!(
            ceph.sh("find /mnt/requested -mindepth 3; ls /mnt/requested")?
                .is_empty()
        );
        ensure!(!spc.log()?.contains(ceph.secret("provisioner")?.as_str()));
        Ok(())
    });
}

/// Does a task in a worker of the controller, which has no socket outside of the machine.
fn work(spc: &VmSpc<'_>, source: &str, id: &str, task: &Value) -> Result<Value> {
    // Saves a copy of the container's programs on the machine.
    let options = "x-spc.container";
    let backend = json!({"name": "nfs", "type": "nfs", "source": source, "options": options});
    let call = json!({"Provision": {"backend": backend, "secrets": {}, "task": task}});
    do_call(spc, id, &call)
}

fn do_call(spc: &VmSpc<'_>, id: &str, call: &Value) -> Result<Value> {
    let job = json!({"driver": "share", "volume_id": id, "milliseconds": 60_000, "call": call});
    spc.put("/tmp/job", job.to_string().as_bytes())?;
    let answer = spc.sh("spc csi-work </tmp/job")?.ok()?.text();
    Ok(serde_json::from_str(&answer)?)
}

#[test]
fn volumes_on_nfs_are_made_and_removed() {
    with_client(|spc| {
        let server = lab::knfsd().context("no server")?.vm();
        let root = format!("{}/data/requested", Knfsd::EXPORTS);
        server.sh(&format!("mkdir -p {root}"))?.ok()?;
        let source = format!("{}:/data/requested", server.address());
        let note = json!({"Create": {
            "name": "pvc-1", "bytes": 0, "onDelete": "delete", "mode": 0o2770, "owner": [1000, 2000],
        }});
        let id = "nfs/team/web";
        for _ in 0..2 {
            let made = work(spc, &source, id, &note)?;
            ensure!(made["code"] == 0, "{made}");
        }
        let mode = server
            .sh(&format!("stat -c %a:%u:%g {root}/team/web"))?
            .ok()?;
        ensure!(mode.text() == "2770:1000:2000", "{mode}");
        // A tree as pods leave it, with another file system of the server in it.
        let plant = format!(
            "cd {root}/team/web && mkdir -p a/b m && echo x >a/b/file && ln -s ../../.. a/up && \
             chown -R 1000 a && chmod 700 a && mount -t tmpfs other m && echo kept >m/file"
        );
        server.sh(&plant)?.ok()?;
        let failed = work(spc, &source, id, &json!("Delete"))?;
        ensure!(failed["code"] == Code::Unavailable as i32, "{failed}");
        let trash = format!("{root}/.spc/trash/team%web");
        ensure!(server.sh(&format!("cat {trash}/m/file"))?.ok()?.text() == "kept");
        server.sh(&format!("exportfs -f; umount {trash}/m"))?.ok()?;
        let done = work(spc, &source, id, &json!("Delete"))?;
        ensure!(done["code"] == 0, "{done}");
        let left = server.sh(&format!("ls -A {root}/team; find {root}/.spc -mindepth 2"))?;
        ensure!(left.ok()?.text().is_empty());
        server.sh(&format!("rm -r {root}"))?.ok()?;
        let done = do_call(spc, "", &json!({"Release": {"backend": "nfs"}}))?;
        ensure!(done["code"] == 0, "{done}");
        spc.is_clean()
    });
}
