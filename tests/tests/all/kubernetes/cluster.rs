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
pub struct Node {
    pub cluster: &'static Kubernetes<'static>,
    server: String,
}

/// Runs a test's body with the cluster and the servers of GlusterFS. Then removes pods and volumes,
/// of which nothing may be left on the node.
pub fn with_cluster(body: impl FnOnce(&Node, &'static Cluster<'static>) -> Result<()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    with_gluster(|_, gluster| {
        let cluster = lab::kubernetes().context("no lab")?;
        let server = gluster.nodes()[0].host().address().to_string();
        let node = Node { cluster, server };
        let whole = || {
            cluster.install_drivers()?;
            let before = node.mounts()?;
            body(&node, gluster)?;
            node.clear()?;
            node.is_clean(&before)
        };
        let ended = whole();
        if ended.is_err() {
            eprintln!("{}", node.state()?);
            node.clear()?;
        }
        ended
    });
}

impl Node {
    /// Output of kubectl.
    pub fn text(&self, words: &[&str]) -> Result<String> {
        Ok(self.cluster.kubectl(words)?.ok()?.text())
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(list.to_string().as_bytes())
    }

    /// Waits until a condition holds, for at most two minutes.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
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
    pub fn ready(&self, pods: &[&str]) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "--timeout=55s", "pod"];
        self.text(&[&wait, pods].concat()).map(drop)
    }

    /// Runs a script in a pod.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.text(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Deletes a pod, whose end kubelet reports when its volumes are gone, and returns how long that
    /// took.
    pub fn delete(&self, pod: &str) -> Result<Duration> {
        let begun = Instant::now();
        self.text(&["delete", "--wait=false", "pod", pod])?;
        self.until(&format!("the end of {pod}"), || {
            Ok(!self.cluster.kubectl(&["get", "pod", pod])?.success())
        })?;
        Ok(begun.elapsed())
    }

    /// Deletes all pods, claims, volumes and secrets of the tests.
    fn clear(&self) -> Result<()> {
        for kinds in ["pods", "persistentvolumeclaims,persistentvolumes"] {
            self.text(&["delete", "--all", "--timeout=55s", kinds])?;
        }
        let secrets = ["delete", "secrets", "--field-selector", "type=Opaque"];
        self.text(&secrets).map(drop)
    }

    /// Checks that the volumes have left nothing on the node.
    fn is_clean(&self, before: &[String]) -> Result<()> {
        self.until("no mount of a volume is left", || {
            Ok(self.volumes()?.is_empty())
        })?;
        let now = self.mounts()?;
        ensure!(now == before, "{now:#?}\nwas: {before:#?}");
        let left = "cat /run/spc/mounts/*.json; pidof glusterfs sshfs; ls -d /var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/*";
        let left = self.cluster.host().sh(left)?.text();
        ensure!(left.is_empty(), "{left}");
        Ok(())
    }

    /// Mounts of the node without their numbers, except those of containers.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let all = self.cluster.host().mountinfo()?.into_iter();
        let line = |mount: Mount| {
            let (target, source) = (mount.target.display(), mount.source.display());
            format!("{} {source} {target} {}", mount.fstype, mount.options)
        };
        let is_ours =
            |line: &String| !line.contains("/containerd/") && !line.contains(" /run/netns/");
        let mut lines: Vec<_> = all.map(line).filter(is_ours).collect();
        lines.sort();
        Ok(lines)
    }

    /// Mounts of volumes of the drivers.
    pub fn volumes(&self) -> Result<Vec<String>> {
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

    /// GlusterFS volume with a claim of the same name.
    pub fn gluster(&self, name: &str) -> [Value; 2] {
        volume(
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

/// PersistentVolume with a claim of the same name.
pub fn volume(name: &str, csi: Value) -> [Value; 2] {
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

/// Volume of a pod by a claim.
pub fn claim(name: &str) -> Value {
    json!({"name": "data", "persistentVolumeClaim": {"claimName": name}})
}

/// Pod with a volume on `/data`.
pub fn pod(name: &str, volume: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [volume],
            "containers": [{
                "name": "main",
                "image": "registry.example.com/pause:1",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
}

/// Pod that writes and reads `/data/NAME` until it ends, and notes every failure.
fn busy_pod(name: &str, volume: Value) -> Value {
    let script = r#"
        n=0
        while :; do
            n=$((n+1))
            { echo $n >/data/$0.new && mv /data/$0.new /data/$0 && [ "$(cat /data/$0)" = $n ]; } 2>>/tmp/failed ||
                echo "at $n" >>/tmp/failed
            sleep 0.02
        done"#;
    let mut pod = pod(name, volume);
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script, name]);
    pod
}

impl Node {
    /// Checks that a busy pod goes on and never failed.
    fn is_busy(&self, pod: &str) -> Result<()> {
        let script = format!(
            "cat /tmp/failed 2>/dev/null && exit 1; read -r a </data/{pod}; sleep 1; read -r b </data/{pod}; [ $b -gt $a ]"
        );
        self.exec(pod, &script).map(drop)
    }

    /// PID of `spc serve`, or an empty string.
    fn driver(&self) -> Result<String> {
        let find = "grep -la 'serve.--cs[i]' /proc/[0-9]*/cmdline | cut -d / -f 3";
        Ok(self.cluster.host().sh(find)?.text())
    }

    /// How many times kubelet has published a volume.
    fn published(&self, volume: &str) -> Result<usize> {
        let line = format!(r#"MountVolume.SetUp succeeded for volume "{volume}" "#);
        let log = self
            .cluster
            .host()
            .read("/var/log/kubernetes/kubelet.log")?;
        Ok(String::from_utf8_lossy(&log).matches(&line).count())
    }

    /// Checks the mounts and daemons of a volume that busy pods use.
    fn has(&self, mounts: &[String], pods: &[&str]) -> Result<()> {
        let now = self.volumes()?;
        ensure!(now == mounts, "{now:#?}\nwas: {mounts:#?}");
        let daemons = self.cluster.host().sh("pidof glusterfs")?.ok()?.text();
        ensure!(daemons.split(' ').count() == 1, "{daemons}");
        pods.iter().try_for_each(|pod| self.is_busy(pod))
    }
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn a_pod_has_a_volume_from_its_claim_to_its_end() {
    with_cluster(|node, gluster| {
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
        node.delete("life").map(drop)
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn files_of_a_share_get_the_group_of_the_pod() {
    with_cluster(|node, _| {
        node.apply(&node.gluster("group"))?;
        let mut pod = pod("group", claim("group"));
        pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
        node.apply(&[pod])?;
        node.ready(&["group"])?;
        ensure!(node.exec("group", "stat -c %g /data")? == "2000");
        node.exec("group", "echo x >/data/group")?;
        ensure!(node.exec("group", "stat -c %g /data/group")? == "2000");
        // Other tests use the volume as well.
        node.exec("group", "chown 0:0 /data && chmod 0755 /data")
            .map(drop)
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn sub_paths_read_only_volumes_and_their_figures() {
    with_cluster(|node, _| {
        node.apply(&node.gluster("sub"))?;
        let mut pod = pod("sub", claim("sub"));
        pod["spec"]["containers"][0]["volumeMounts"] = json!([
            {"name": "data", "mountPath": "/data", "subPath": "part"},
            {"name": "data", "mountPath": "/all", "readOnly": true},
        ]);
        let mut reader = self::pod("reader", claim("sub"));
        reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
        node.apply(&[pod, reader])?;
        node.ready(&["sub", "reader"])?;
        node.exec("sub", "echo x >/data/file")?;
        ensure!(node.exec("sub", "cat /all/part/file")? == "x");
        ensure!(node.exec("reader", "cat /data/part/file")? == "x");
        for (pod, path) in [("sub", "/all/file"), ("reader", "/data/file")] {
            let write = ["exec", pod, "--", "touch", path];
            let write = node.cluster.kubectl(&write)?;
            ensure!(write.error_text().contains("Read-only"), "{write}");
        }
        let metrics = format!("/api/v1/nodes/{}/proxy/metrics", node.cluster.host().name());
        let figure = r#"kubelet_volume_stats_capacity_bytes{namespace="default",persistentvolumeclaim="sub"}"#;
        node.until("kubelet has figures of the volume", || {
            Ok(node.text(&["get", "--raw", &metrics])?.contains(figure))
        })
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn flexvolume_works_beside_csi() {
    with_cluster(|node, _| {
        node.cluster.apply_base("flexvolume")?;
        let daemonset = ["-n", "spc-flexvolume", "daemonset/spc-flexvolume"];
        let status = [&["rollout", "status"][..], &daemonset].concat();
        node.text(&status)?;
        node.apply(&node.gluster("csi"))?;
        let flex = json!({"name": "data", "flexVolume": {
            "driver": "spc/spc",
            "fsType": "glusterfs",
            "options": {"servers": node.server, "path": "vol"},
        }});
        node.apply(&[pod("csi", claim("csi")), pod("flex", flex)])?;
        node.ready(&["csi", "flex"])?;
        node.exec("flex", "echo x >/data/flex")?;
        ensure!(node.exec("csi", "cat /data/flex")? == "x");
        let mounts = node.mounts()?;
        let flex = mounts.iter().filter(|line| line.contains("/spc~spc/"));
        ensure!(flex.count() == 1, "{mounts:#?}");
        for pod in ["flex", "csi"] {
            node.delete(pod)?;
        }
        let set = [&["delete", "--timeout=55s"][..], &daemonset].concat();
        node.text(&set).map(drop)
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn pods_keep_their_volume_while_driver_and_kubelet_restart() {
    with_cluster(|node, _| {
        let host = node.cluster.host();
        node.apply(&node.gluster("kept"))?;
        let pods = ["kept-1", "kept-2"];
        node.apply(&pods.map(|pod| busy_pod(pod, claim("kept"))))?;
        node.ready(&pods)?;
        let mounts = node.volumes()?;
        ensure!(mounts.len() == 1 + pods.len(), "{mounts:#?}");
        node.has(&mounts, &pods)?;

        let driver = node.driver()?;
        host.sh(&format!("kill -9 {driver}"))?.ok()?;
        node.until("another process serves", || {
            let now = node.driver()?;
            Ok(!now.is_empty() && now != driver)
        })?;
        node.has(&mounts, &pods).context("a killed driver")?;

        let all = ["delete", "pod", "-n", "spc", "--all", "--timeout=55s"];
        node.text(&all)?;
        node.cluster.wait_for_drivers()?;
        node.has(&mounts, &pods)
            .context("another pod of the driver")?;

        for _ in 0..3 {
            let published = node.published("kept")?;
            node.cluster.restart_kubelet()?;
            node.until("kubelet has published the volume again", || {
                Ok(node.published("kept")? == published + pods.len())
            })?;
            node.has(&mounts, &pods).context("a killed kubelet")?;
        }

        let set = ["delete", "-n", "spc", "--timeout=55s", "daemonset/spc-csi"];
        node.text(&set)?;
        node.has(&mounts, &pods).context("no driver")?;
        node.cluster.install_drivers()?;
        node.has(&mounts, &pods).context("a driver again")?;

        // A third pod shows that both work.
        node.apply(&[busy_pod("kept-3", claim("kept"))])?;
        node.ready(&["kept-3"])?;
        ensure!(node.volumes()?.len() == 4, "{:#?}", node.volumes());
        node.is_busy("kept-3")?;
        node.delete("kept-3")?;
        node.has(&mounts, &pods).context("the end of another pod")
    });
}
