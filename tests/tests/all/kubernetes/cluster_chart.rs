//! The Helm chart on a real cluster.

use anyhow::ensure;

use crate::kubernetes::cluster::{claim, pod, with_cluster};

/// Checks that Helm takes the drivers over from the base while a pod uses a volume, and that a new
/// pod uses one as well.
#[test]
#[ignore = "long: Kubernetes is built from source"]
fn the_chart_takes_over_from_the_base() {
    with_cluster(|node, _| {
        node.apply(&node.gluster("chart"))?;
        node.apply(&[pod("old", claim("chart"))])?;
        node.ready(&["old"])?;
        let mounts = node.volumes()?;
        let namespace = ["--namespace", "spc"];
        let install = [
            "upgrade",
            "--install",
            "--take-ownership",
            "spc",
            "/root/chart",
        ];
        let install = [&install[..], &namespace].concat();
        node.cluster.helm(&install)?.ok()?;
        node.cluster.wait_for_drivers()?;
        ensure!(node.volumes()? == mounts, "{:#?}", node.volumes());
        node.apply(&[pod("new", claim("chart"))])?;
        node.ready(&["new"])?;
        node.exec("new", "echo x >/data/file")?;
        ensure!(node.exec("old", "cat /data/file")? == "x");
        for pod in ["old", "new"] {
            node.delete(pod)?;
        }
        node.cluster
            .helm(&[&["uninstall", "spc"][..], &namespace].concat())?
            .ok()?;
        let left = [
            "get",
            "csidrivers,daemonsets,resourcequotas",
            "-A",
            "-o",
            "name",
        ];
        let left = node.text(&left)?;
        ensure!(left.is_empty(), "{left}");
        node.cluster.install_drivers()
    });
}
