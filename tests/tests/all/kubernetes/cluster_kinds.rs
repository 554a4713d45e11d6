//! A real cluster: a PersistentVolume of each kind that needs no module of the kernel.

use anyhow::{Context, Result, ensure};
use lab::Lab;
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Node, claim, pod, volume, with_cluster};
use crate::kubernetes::flexvolume::sshd;

/// Secret with one key.
fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": {key: value},
    })
}

impl Node {
    /// Checks that two pods share one mount of a volume and its daemon.
    fn is_shared(&self, name: &str, csi: Value, daemon: &str) -> Result<()> {
        let pods = [1, 2].map(|n| format!("{name}-{n}"));
        let pods = pods.each_ref().map(String::as_str);
        self.apply(&volume(name, csi))?;
        self.apply(&pods.map(|pod| self::pod(pod, claim(name))))?;
        self.ready(&pods)?;
        let mounts = self.volumes()?;
        ensure!(mounts.len() == 1 + pods.len(), "{mounts:#?}");
        let daemons = self.cluster.host().run(&["pidof", daemon])?.ok()?.text();
        ensure!(daemons.split(' ').count() == 1, "{daemons}");
        self.exec(pods[0], &format!("echo by a pod >/data/{name}"))?;
        let seen = self.exec(pods[1], &format!("cat /data/{name}; rm /data/{name}"))?;
        ensure!(seen == "by a pod", "{seen}");
        for pod in pods {
            self.delete(pod)?;
        }
        self.until("the volume is gone", || Ok(self.volumes()?.is_empty()))
    }
}

/// Volume with the driver's part of a secret with the same name.
fn with_secret(name: &str, driver: &str, fs_type: &str, attributes: Value) -> Value {
    json!({
        "driver": driver,
        "volumeHandle": name,
        "fsType": fs_type,
        "volumeAttributes": attributes,
        "nodeStageSecretRef": {"name": name, "namespace": "default"},
    })
}

fn shared(node: &Node, lab: &Lab) -> Result<()> {
    let password = "Correct,Horse 7";
    let server = sshd(lab, password)?;
    node.apply(&[secret("sshfs", "password", password)])?;
    let attributes = json!({
        "source": format!("root@{}:/srv/data", server.address()),
        "options": "StrictHostKeyChecking=no",
    });
    let csi = with_secret("sshfs", "mapped.spc.csi", "fuse.sshfs", attributes);
    node.is_shared("sshfs", csi, "sshfs").context("sshfs")?;

    let store = lab.s3()?;
    node.apply(&[secret("s3fs", "passwd", &format!("{}\n", store.key()))])?;
    let attributes = json!({
        "source": "bucket",
        "options": format!("url={},use_path_request_style", store.guarded()),
    });
    let csi = with_secret("s3fs", "mapped.spc.csi", "fuse.s3fs", attributes);
    node.is_shared("s3fs", csi, "s3fs").context("s3fs")?;

    let ceph = lab::ceph().context("no cluster")?;
    node.apply(&[secret("ceph", "secret", &ceph.secret("app")?)])?;
    let attributes = json!({
        "source": format!("{}:/app", ceph.monitors()),
        "options": "name=app",
    });
    let csi = with_secret("ceph", "share.spc.csi", "ceph", attributes);
    node.is_shared("ceph", csi, "ceph-fuse").context("CephFS")
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn two_pods_share_a_volume_of_each_kind() {
    with_cluster(|node, _| shared(node, node.cluster.host().lab()));
}
