//! A real cluster with a real kubelet: the manifest of the CSI drivers as it is shipped, volumes of
//! GlusterFS, and pods that use them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Kubernetes, Mount};
use serde_json::{Value, json};

use crate::support::with_gluster;

/// The cluster that all tests share, with the drivers on its node. One test at a time uses it,
/// because the mount table of the node is compared.
struct Node {
    cluster: &'static Kubernetes<'static>,
    server: String,
}

/// Runs a test's body with the cluster and the servers of GlusterFS.
fn with_cluster(body: impl FnOnce(&Node, &'static Cluster<'static>) -> Result<()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    with_gluster(|_, gluster| {
        let cluster = lab::kubernetes().context("no lab")?;
        let server = gluster.nodes()[0].host().address().to_string();
        let node = Node { cluster, server };
        let ended = cluster
            .install_drivers()
            .and_then(|()| body(&node, gluster));
        if ended.is_err() {
            eprintln!("{}", node.state()?);
        }
        ended
    });
}

impl Node {
    /// Output of kubectl.
    fn text(&self, words: &[&str]) -> Result<String> {
        Ok(self.cluster.kubectl(words)?.ok()?.text())
    }

    /// Applies objects.
    fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(list.to_string().as_bytes())
    }

    /// Waits until a condition holds, for at most two minutes.
    fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !holds()? {
            ensure!(
                begun.elapsed() < Duration::from_secs(120),
                "not within 120 s: {what}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Waits until pods are ready.
    fn ready(&self, pods: &[&str]) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "--timeout=55s", "pod"];
        self.text(&[&wait, pods].concat()).map(drop)
    }

    /// Runs a script in a pod.
    fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.text(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Deletes pods and waits for their end.
    fn delete(&self, kind: &str, names: &[&str]) -> Result<()> {
        let delete = ["delete", "--timeout=55s", kind];
        self.text(&[&delete, names].concat()).map(drop)
    }

    /// Mounts of the node, without those of the containers and their numbers.
    fn mounts(&self) -> Result<Vec<String>> {
        let all = self.cluster.host().mountinfo()?.into_iter();
        let line = |mount: Mount| {
            let (target, source) = (mount.target.display(), mount.source.display());
            format!("{} {source} {target} {}", mount.fstype, mount.options)
        };
        let mut lines: Vec<_> = all.map(line).collect();
        lines.sort();
        Ok(lines)
    }

    /// Mounts of volumes of the drivers.
    fn volumes(&self) -> Result<Vec<String>> {
        let mounts = self.mounts()?.into_iter();
        let is_csi = |line: &String| {
            line.contains("/kubernetes.io/csi/") || line.contains("kubernetes.io~csi")
        };
        Ok(mounts.filter(is_csi).collect())
    }

    /// What explains a failure.
    fn state(&self) -> Result<String> {
        let script = "kubectl get pods,pv,pvc -A -o wide; kubectl get events -A; kubectl logs -n spc ds/spc-csi --tail=40; tail -n 40 /var/log/kubernetes/kubelet.log; grep csi /proc/self/mountinfo";
        Ok(self.cluster.host().sh(script)?.to_string())
    }

    /// PersistentVolume with a claim of the same name.
    fn volume(&self, name: &str, csi: Value) -> [Value; 2] {
        let spec = json!({
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "claimRef": {"namespace": "default", "name": name},
            "csi": csi,
        });
        let claim = json!({
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}},
        });
        let object = |kind: &str, spec: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        [
            object("PersistentVolume", spec),
            object("PersistentVolumeClaim", claim),
        ]
    }

    /// GlusterFS volume with a claim of the same name.
    fn gluster(&self, name: &str) -> [Value; 2] {
        self.volume(
            name,
            json!({
                "driver": "share.spc.csi",
                "volumeHandle": name,
                "fsType": "glusterfs",
                "volumeAttributes": {"servers": self.server, "path": "vol"},
            }),
        )
    }
}

/// Volume of a pod by a claim.
fn claim(name: &str) -> Value {
    json!({"name": "data", "persistentVolumeClaim": {"claimName": name}})
}

/// Pod with a volume on `/data`.
fn pod(name: &str, volume: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "volumes": [volume],
            "containers": [{
                "name": "main",
                "image": "registry.example.com/pause:1",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn a_pod_has_a_volume_from_its_claim_to_its_end() {
    with_cluster(|node, gluster| {
        let before = node.mounts()?;
        node.apply(&node.gluster("life"))?;
        node.apply(&[pod("life", claim("life"))])?;
        node.ready(&["life"])?;
        node.exec("life", "echo from a pod >/data/life")?;
        ensure!(node.exec("life", "cat /data/life")? == "from a pod");
        for server in gluster.nodes() {
            let file = server.brick("vol").join("life");
            ensure!(server.host().read(file)? == b"from a pod\n");
        }
        ensure!(node.volumes()?.len() == 2, "{:?}", node.volumes());
        node.delete("pod", &["life"])?;
        node.until("the mounts are those from before", || {
            Ok(node.mounts()? == before)
        })?;
        let records = node.cluster.host().sh("ls /run/spc/mounts/*.json")?;
        ensure!(!records.success(), "{records}");
        node.delete("pvc", &["life"])?;
        node.delete("pv", &["life"])
    });
}
