//! The steps of docs/kubernetes/migration.md on a real cluster, from FlexVolume to CSI.

use anyhow::{Context, Result, ensure};
use lab::kubernetes::parse;
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Node, claim, pod, volume, with_cluster};
use crate::kubernetes::csi_examples::migration_page;

/// Text between two others.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(start)
        .with_context(|| format!("no {start}"))?;
    let (inside, _) = rest.split_once(end).with_context(|| format!("no {end}"))?;
    Ok(inside)
}

fn run(node: &Node, command: &str) -> Result<()> {
    node.cluster.host().sh(command)?.ok().map(drop)
}

#[test]
#[ignore = "long: Kubernetes is built from source"]
fn the_steps_of_the_migration_keep_the_data() {
    with_cluster(|node, _| {
        let page = migration_page()?;
        let steps = between(&page, "## Steps\n", "\n## ")?;
        node.cluster.apply_base("flexvolume")?;
        let daemonset = ["-n", "spc-flexvolume", "daemonset/spc-flexvolume"];
        node.text(&[&["rollout", "status"][..], &daemonset].concat())?;
        let [mut old, old_claim] = volume("data", Value::Null);
        let server = &node.gluster("data")[0]["spec"]["csi"]["volumeAttributes"];
        let spec = old["spec"].as_object_mut().context("no spec")?;
        spec.remove("csi");
        spec.insert(
            "flexVolume".to_owned(),
            json!({"driver": "spc/spc", "fsType": "glusterfs", "options": server}),
        );
        let workload = pod("workload", claim("data"));
        node.apply(&[old, old_claim, workload.clone()])?;
        node.ready(&["workload"])?;
        node.exec("workload", "echo kept >/data/file")?;

        for command in between(steps, "```sh\n", "```")?.lines() {
            run(node, command)?;
        }
        node.delete("workload")?;
        let deletions: Vec<_> = steps
            .split('`')
            .filter(|span| span.starts_with("kubectl delete "))
            .collect();
        ensure!(deletions.len() == 2, "{deletions:?}");
        for command in deletions {
            run(node, command)?;
        }
        let section = between(&page, "## GlusterFS\n", "\n## ")?;
        let after = between(section, "After:\n\n```yaml\n", "```")?;
        let mut new = parse(after)?.remove(0);
        let spec = &mut new["spec"];
        spec["csi"]["volumeAttributes"] = server.clone();
        spec["capacity"] = json!({"storage": "1Ti"});
        spec["accessModes"] = json!(["ReadWriteMany"]);
        let new_claim = parse(between(steps, "```yaml\n", "```")?)?.remove(0);
        node.apply(&[new, new_claim, workload])?;
        node.ready(&["workload"])?;
        ensure!(node.exec("workload", "cat /data/file")? == "kept");
        let mounts = node.mounts()?;
        let of_kind = |kind: &str| mounts.iter().filter(|line| line.contains(kind)).count();
        ensure!(
            of_kind("/spc~spc/") == 0 && of_kind("/kubernetes.io~csi/") == 1,
            "{mounts:#?}"
        );
        node.delete("workload")?;
        node.text(&[&["delete", "--timeout=55s"][..], &daemonset].concat())
            .map(drop)
    });
}
