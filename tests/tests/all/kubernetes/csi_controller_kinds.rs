//! The CSI controller with CephFS, whose directories have quotas, and NFS.

use anyhow::{Context, Result, ensure};
use lab::{Ceph, Knfsd};
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

/// Makes a user for the controller, who may set quotas (`p`), and one for nodes, who may not.
fn make_users(ceph: &Ceph<'_>) -> Result<()> {
    let users = "mkdir -p /mnt/requested && for user in provisioner:rwp node:rw; do \
         ceph auth get-or-create client.${user%:*} mon 'allow r' \
         mds \"allow ${user#*:} path=/requested\" osd 'allow rw tag cephfs data=cephfs' \
         >/dev/null; done";
    ceph.sh(users).map(drop)
}

/// Quota of a volume, as Python prints it.
fn quota(ceph: &Ceph<'_>, path: &str) -> Result<String> {
    let script = "import os, sys; print(os.getxattr(sys.argv[1], 'ceph.quota.max_bytes'))";
    ceph.sh(&format!("python3 -c \"{script}\" /mnt/{path}"))
}

#[test]
fn quotas_of_cephfs_limit_volumes_and_grow_with_them() {
    with_lab(|lab| {
        let ceph = lab::ceph().context("no cluster")?;
        let spc = serve(lab, &json!([]))?;
        make_users(ceph)?;
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
        let read = |path: &str| quota(ceph, &format!("requested/{path}"));
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
        // A directory with a quota of its own, out of which nothing can be renamed.
        let set = "import os, sys; os.setxattr(sys.argv[1], 'ceph.quota.max_bytes', b'1048576')";
        let sub = "/mnt/requested/pvc-1/sub";
        ceph.sh(&format!(
            "mkdir -p {sub}/deeper && python3 -c \"{set}\" {sub}"
        ))?;
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

/// Does a call in a worker of the controller, which has no socket outside of the machine.
fn work(spc: &VmSpc<'_>, id: &str, call: &Value) -> Result<Value> {
    let job = json!({"driver": "share", "volume_id": id, "milliseconds": 60_000, "call": call});
    spc.put("/tmp/job", job.to_string().as_bytes())?;
    let answer = spc.sh("spc csi-work </tmp/job")?.ok()?.text();
    Ok(serde_json::from_str(&answer)?)
}

/// Task to make a volume.
fn note(bytes: i64) -> Value {
    json!({"Create": {
        "name": "pvc-1", "bytes": bytes, "onDelete": "delete", "mode": 0o2770, "owner": [1000, 2000],
    }})
}

#[test]
fn the_kernels_cephfs_has_quotas_too() {
    with_lab(|lab| {
        let ceph = lab::ceph().context("no cluster")?;
        ceph.sh("mkdir -p /mnt/kernel")?;
        let spc = VmSpc::privileged(lab)?;
        let backend = json!({
            "name": "fs", "type": "ceph", "source": format!("{}:/kernel", ceph.monitors()),
            "options": "name=admin,x-spc.container", "quota": "ceph",
        });
        let key = ceph.secret("admin")?;
        let done = |task: &Value| -> Result<Value> {
            let call = json!({"Provision": {
                "backend": backend, "secrets": {"secret": key}, "task": task,
            }});
            let answer = work(&spc, "fs/web", &call)?;
            ensure!(answer["code"] == 0, "{answer}");
            Ok(answer["bytes"].clone())
        };
        ensure!(done(&note(8 * MIB))? == 8 * MIB);
        let on = spc.on("/run/spc/backends/fs")?;
        ensure!(on.len() == 1 && on[0].fstype == "ceph", "{on:?}");
        ensure!(done(&json!({"Expand": 16 * MIB}))? == 16 * MIB);
        let found = quota(ceph, "kernel/web")?;
        ensure!(found == format!("b'{}'", 16 * MIB), "{found}");
        done(&json!("Delete"))?;
        ensure!(ceph.sh("ls /mnt/kernel")?.is_empty());
        let done = work(&spc, "", &json!({"Release": {"backend": "fs"}}))?;
        ensure!(done["code"] == 0, "{done}");
        spc.is_clean()
    });
}

#[test]
fn volumes_on_nfs_are_made_and_removed() {
    with_client(|spc| {
        let server = lab::knfsd().context("no server")?.vm();
        let root = format!("{}/data/requested", Knfsd::EXPORTS);
        server.sh(&format!("mkdir -p {root}"))?.ok()?;
        let source = format!("{}:/data/requested", server.address());
        // Saves a copy of the container's programs on the machine.
        let options = "x-spc.container";
        let backend = json!({"name": "nfs", "type": "nfs", "source": source, "options": options});
        let work_on = |task: &Value| {
            let call = json!({"Provision": {"backend": backend, "secrets": {}, "task": task}});
            work(spc, "nfs/team/web", &call)
        };
        for _ in 0..2 {
            let made = work_on(&note(0))?;
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
        let failed = work_on(&json!("Delete"))?;
        ensure!(failed["code"] == Code::Unavailable as i32, "{failed}");
        let trash = format!("{root}/.spc/trash/team%web");
        ensure!(server.sh(&format!("cat {trash}/m/file"))?.ok()?.text() == "kept");
        server.sh(&format!("exportfs -f; umount {trash}/m"))?.ok()?;
        let done = work_on(&json!("Delete"))?;
        ensure!(done["code"] == 0, "{done}");
        let left = server.sh(&format!("ls -A {root}/team; find {root}/.spc -mindepth 2"))?;
        ensure!(left.ok()?.text().is_empty());
        server.sh(&format!("rm -r {root}"))?.ok()?;
        let done = work(spc, "", &json!({"Release": {"backend": "nfs"}}))?;
        ensure!(done["code"] == 0, "{done}");
        spc.is_clean()
    });
}
