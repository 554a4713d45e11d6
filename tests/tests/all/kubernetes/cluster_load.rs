//! A real cluster: many pods at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Node, claim, pod, volume, with_cluster};

/// Number of pods that start and end at once.
const PODS: usize = 50;

/// Times until all pods were ready, and until all had ended.
type Times = [Duration; 2];

impl Node {
    /// Starts pods at once, each with its volume on `/data`, and deletes them.
    fn storm(&self, name: &str, volume: impl Fn(&str) -> Value) -> Result<Times> {
        let names: Vec<_> = (0..PODS).map(|n| format!("{name}-{n}")).collect();
        let pods: Vec<_> = names.iter().map(|name| pod(name, volume(name))).collect();
        let list = "jsonpath={range .items[*]}{.status.containerStatuses[0].ready}{\"\\n\"}{end}";
        let ready = || -> Result<usize> {
            let states = self.text(&["get", "pods", "-o", list])?;
            Ok(states.lines().filter(|line| *line == "true").count())
        };
        let begun = Instant::now();
        self.apply(&pods)?;
        self.until("all pods are ready", || Ok(ready()? == PODS))?;
        let started = begun.elapsed();
        let begun = Instant::now();
        self.text(&["delete", "pods", "--all", "--wait=false"])?;
        self.until("all pods have ended", || {
            Ok(self.text(&["get", "pods", "-o", "name"])?.is_empty())
        })?;
        let times = [started, begun.elapsed()];
        eprintln!(
            "{PODS} pods, {name}: ready after {:.1?}, ended after {:.1?}",
            times[0], times[1]
        );
        Ok(times)
    }
}

/// Directory of the node as a PersistentVolume, with a claim of the same name.
fn on_host(name: &str) -> [Value; 2] {
    let mut objects = volume(name, Value::Null);
    if let Some(spec) = objects[0]["spec"].as_object_mut() {
        spec.remove("csi");
        spec.insert("hostPath".to_owned(), json!({"path": "/srv"}));
    }
    objects
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn fifty_pods_at_once_start_and_end_like_pods_without_volumes() {
    with_cluster(|node, _| {
        node.apply(&node.gluster("shared"))?;
        for n in 0..PODS {
            node.apply(&node.gluster(&format!("own-{n}")))?;
            node.apply(&on_host(&format!("local-{n}")))?;
        }
        for _ in 0..2 {
            let empty = node.storm("empty", |_| json!({"name": "data", "emptyDir": {}}))?;
            // Shows the time that kubelet itself needs for a claim.
            let local = node.storm("local", claim)?;
            let shared = node.storm("shared", |_| claim("shared"))?;
            let own = node.storm("own", claim)?;
            for (what, times) in [
                ("directories of the node", local),
                ("one volume", shared),
                ("fifty volumes", own),
            ] {
                let [start, end] = [0, 1].map(|n| times[n].as_secs_f64() / empty[n].as_secs_f64());
                eprintln!("{what}: {start:.2} of emptyDir to start, {end:.2} to end");
                ensure!(start < 3.0 && end < 3.0, "{what}: {start:.2}, {end:.2}");
            }
        }
        Ok(())
    });
}
