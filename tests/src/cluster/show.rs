//! `lab kubernetes`: a cluster with a volume, to try things by hand.

use anyhow::{Context, Result};
use std::process::ExitCode;

use crate::outer::Lab;
use crate::output::Status;

/// Volume, claim and pod.
const EXAMPLE: &str = include_str!("example.yaml");

/// Commands to try on the node.
const GUIDE: &str = "
This is the node of a Kubernetes cluster. The pod `web` has the GlusterFS volume `vol` on /data.
Everything ends with this shell.

  kubectl get pods,pv,pvc -A                   what runs
  kubectl describe pv data                     the volume
  kubectl exec web -- sh -c 'date >/data/now; ls -l /data'
  grep csi /proc/mounts                        one mount of the volume, and one for the pod
  kubectl exec -n spc ds/spc-csi -- spc ls     the same, as spc sees it
  kubectl delete -n spc ds/spc-csi             the pod keeps its volume
  kubectl apply --validate=false -k /root/kubernetes/node
  kubectl delete -f /root/example.yaml         the pod and its volume end

Objects: /root/example.yaml and /root/kubernetes. Logs: /var/log/kubernetes.
";

/// Starts the cluster and the example, prints the guide, and runs a shell on the node.
pub fn run() -> Result<ExitCode> {
    let lab = Lab::start()?;
    let gluster = lab.gluster()?;
    gluster.create_volume("vol")?;
    let cluster = lab.kubernetes()?;
    cluster.install_drivers()?;
    let server = gluster.nodes().first().context("no servers")?;
    let example = EXAMPLE.replace("SERVER", &server.host().address().to_string());
    let host = cluster.host();
    host.write("/root/example.yaml", example.as_bytes())?;
    cluster.apply(example.as_bytes())?;
    cluster
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=55s", "pod/web"])?
        .ok()?;
    println!("{GUIDE}");
    Ok(match host.command(&["sh"])?.interactive()? {
        Status::Code(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
