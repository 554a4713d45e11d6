//! A real cluster: servers that are down, secrets, volumes that the author of a pod may not have.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Node, claim, pod, volume, with_cluster};
use crate::kubernetes::flexvolume::sshd;

/// Limit for the end of a pod.
const MINUTE: Duration = Duration::from_secs(60);

impl Node {
    /// Waits for a warning about a pod that has these words, and returns it.
    fn warning(&self, pod: &str, words: &str) -> Result<String> {
        let field = format!("involvedObject.name={pod},type=Warning");
        let list = ["get", "events", "--field-selector", &field];
        let list = [
            &list[..],
            &["-o", "jsonpath={range .items[*]}{.message}{'\\n\\n'}{end}"],
        ]
        .concat();
        let mut found = None;
        let wait = self.until(&format!("a warning about {pod} says {words:?}"), || {
            let events = self.text(&list)?;
            found = events
                .split("\n\n")
                .find(|event| event.contains(words))
                .map(str::to_owned);
            Ok(found.is_some())
        });
        wait.with_context(|| format!("{:?}", self.text(&list)))?;
        found.context("no warning")
    }
}

/// Inline volume of a pod.
fn inline(fs_type: &str, attributes: Value) -> Value {
    json!({"name": "data", "csi": {
        "driver": "share.spc.csi", "fsType": fs_type, "volumeAttributes": attributes,
    }})
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn a_pod_whose_server_is_down_says_so_and_ends() {
    with_cluster(|node, _| {
        // An address of the lab that no host has.
        let csi = json!({
            "driver": "share.spc.csi",
            "volumeHandle": "down",
            "fsType": "glusterfs",
            "volumeAttributes": {"servers": "192.0.2.254", "path": "vol"},
        });
        node.apply(&volume("down", csi))?;
        let begun = Instant::now();
        node.apply(&[pod("down", claim("down"))])?;
        let warning = node.warning("down", "cannot mount 192.0.2.254:/vol")?;
        eprintln!("{warning}\nafter {:.1?}", begun.elapsed());
        ensure!(begun.elapsed() < MINUTE, "{:?}", begun.elapsed());
        ensure!(node.volumes()?.is_empty(), "{:#?}", node.volumes());
        // Others start meanwhile.
        node.apply(&node.gluster("up"))?;
        node.apply(&[pod("up", claim("up"))])?;
        node.ready(&["up"])?;
        let ended = node.delete("down")?;
        ensure!(ended < MINUTE, "{ended:?}");
        Ok(())
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn a_pod_whose_servers_hang_ends_within_a_minute() {
    with_cluster(|node, gluster| {
        let pods = ["idle", "waiting"];
        node.apply(&node.gluster("hung"))?;
        node.apply(&pods.map(|name| pod(name, claim("hung"))))?;
        node.ready(&pods)?;
        node.exec("idle", "echo x >/data/hung")?;
        let signal = |name: &str| {
            let script = format!("busybox killall -{name} glusterd glusterfsd");
            let send = |server: &lab::Node<'_>| server.host().sh(&script)?.ok().map(drop);
            gluster.nodes().iter().try_for_each(send)
        };
        signal("STOP")?;
        let ended = (|| {
            let read = "kubectl exec waiting -- cat /data/hung >/dev/null & sleep 1; kill -0 $!";
            node.cluster
                .host()
                .sh(read)?
                .ok()
                .context("the servers answer")?;
            let idle = node.delete("idle")?;
            ensure!(idle < MINUTE, "{idle:?}");
            // A process that waits for an answer cannot be killed before the client gives up, after
            // 42 s for each server.
            let waiting = node.delete("waiting")?;
            eprintln!("idle ended in {idle:.1?}, waiting in {waiting:.1?}");
            node.until("nothing is left", || Ok(node.volumes()?.is_empty()))
        })();
        signal("CONT")?;
        ended
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn a_dead_daemon_is_replaced_in_running_pods() {
    with_cluster(|node, _| {
        let pods = ["one", "two"];
        node.apply(&node.gluster("dead"))?;
        node.apply(&pods.map(|name| pod(name, claim("dead"))))?;
        node.ready(&pods)?;
        node.exec("one", "echo x >/data/dead")?;
        for _ in 0..2 {
            node.cluster.host().sh("kill -9 $(pidof glusterfs)")?.ok()?;
            let begun = Instant::now();
            for pod in pods {
                node.until(&format!("{pod} has its volume"), || {
                    let read = node
                        .cluster
                        .kubectl(&["exec", pod, "--", "cat", "/data/dead"])?;
                    Ok(read.success())
                })?;
            }
            eprintln!("replaced after {:.1?}", begun.elapsed());
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "{:?}",
                begun.elapsed()
            );
            ensure!(
                node.volumes()?.len() == 1 + pods.len(),
                "{:#?}",
                node.volumes()
            );
        }
        node.exec("two", "echo y >/data/dead")?;
        ensure!(node.exec("one", "cat /data/dead")? == "y");
        // Also pods that start later have the new one.
        node.apply(&[pod("three", claim("dead"))])?;
        node.ready(&["three"])?;
        ensure!(node.exec("three", "cat /data/dead")? == "y");
        Ok(())
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn secrets_appear_neither_in_events_nor_in_logs() {
    // The server ends after the pod, which the end of the test removes.
    let server = Mutex::new(None);
    with_cluster(|node, _| {
        let password = "Correct,Horse 7";
        let sshd = sshd(node.cluster.host().lab(), password)?;
        let source = format!("root@{}:/srv/data", sshd.address());
        let groups = "stat -c %g:%a /srv/data /srv/data/file";
        let before = sshd.sh(groups)?.ok()?.text();
        let secret = |password: &str| {
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "sshfs"},
                "stringData": {"password": password},
            })
        };
        let csi = json!({
            "driver": "mapped.spc.csi",
            "volumeHandle": "secret",
            "fsType": "fuse.sshfs",
            "volumeAttributes": {"source": source, "options": "StrictHostKeyChecking=no"},
            "nodeStageSecretRef": {"name": "sshfs", "namespace": "default"},
        });
        node.apply(&volume("secret", csi))?;
        let mut pod = pod("secret", claim("secret"));
        pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
        node.apply(&[secret("Wrong,Horse 8"), pod])?;
        eprintln!("{}", node.warning("secret", "cannot mount root@")?);
        node.apply(&[secret(password)])?;
        node.ready(&["secret"]).context("the right password")?;
        ensure!(node.exec("secret", "cat /data/file")? == "on the server");
        let everything = "kubectl get events -A -o yaml; kubectl logs -n spc ds/spc-csi; cat /run/spc/mounts/*; cat /var/log/kubernetes/kubelet.log; cat /proc/[0-9]*/cmdline";
        let everything = node.cluster.host().sh(everything)?;
        ensure!(!everything.text().contains("Horse"), "{everything}");
        let groups = sshd.sh(groups)?.ok()?.text();
        ensure!(
            groups == before,
            "kubelet changed the server's files: {groups}"
        );
        *server.lock().unwrap_or_else(PoisonError::into_inner) = Some(sshd);
        Ok(())
    });
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn the_author_of_a_pod_has_what_the_policy_allows() {
    with_cluster(|node, gluster| {
        let address = gluster.nodes()[0].host().address().to_string();
        let allowed = inline("glusterfs", json!({"servers": address, "path": "vol"}));
        let refused = inline("bind", json!({"source": "/etc"}));
        node.apply(&[pod("allowed", allowed), pod("refused", refused)])?;
        node.ready(&["allowed"])?;
        node.exec("allowed", "echo inline >/data/inline")?;
        ensure!(node.volumes()?.len() == 1, "{:#?}", node.volumes());
        eprintln!("{}", node.warning("refused", "bind")?);
        for pod in ["allowed", "refused"] {
            let ended = node.delete(pod)?;
            ensure!(ended < MINUTE, "{pod}: {ended:?}");
        }
        Ok(())
    });
}
