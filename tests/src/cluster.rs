//! Real Kubernetes cluster of one node, on a disposable host.

pub mod programs;
pub mod show;

use anyhow::{Result, ensure};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::host::{Host, HostOptions};
use crate::image::{Base, image};
use crate::outer::{Lab, shared};
use crate::output::Output;
use crate::programs::{Libc, program};
use crate::render;
use crate::roots::Root;

/// Limit for the start, on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(300);

/// Limit for the registration of the drivers. kubelet retries after up to half a minute.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(60);

/// Names of the CSI drivers.
const DRIVERS: [&str; 3] = ["disk.spc.csi", "mapped.spc.csi", "share.spc.csi"];

/// Network plugin that reports an address for a pod, and creates no interface. Only pods with
/// `hostNetwork` have a network.
const NO_NETWORK: &str = r#"#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
    echo "{\"cniVersion\": \"0.3.1\",
        \"interfaces\": [{\"name\": \"$CNI_IFNAME\", \"sandbox\": \"$CNI_NETNS\"}],
        \"ips\": [{\"version\": \"4\", \"interface\": 0, \"address\": \"198.51.100.9/32\"}]}"
fi
"#;

/// Files of the node, by path. containerd always runs the plugin `loopback`.
const FILES: [(&str, &str); 7] = [
    ("/opt/cni/bin/loopback", NO_NETWORK),
    ("/opt/cni/bin/none", NO_NETWORK),
    (
        "/etc/cni/net.d/none.conf",
        r#"{"cniVersion": "0.3.1", "name": "none", "type": "none"}"#,
    ),
    (
        "/etc/kubernetes/containerd.toml",
        include_str!("cluster/containerd.toml"),
    ),
    (
        "/etc/kubernetes/kubelet.yaml",
        include_str!("cluster/kubelet.yaml"),
    ),
    (KUBELET, include_str!("cluster/kubelet.sh")),
    (START, include_str!("cluster/start.sh")),
];

/// Script on the node that starts kubelet.
const KUBELET: &str = "/etc/kubernetes/kubelet";

/// Script on the node that starts the cluster.
const START: &str = "/etc/kubernetes/start";

/// Script that creates an archive of the image `registry.example.com/pause:1`: busybox, and a
/// program that waits.
const PAUSE: &str = r#"set -eu
cd "$(mktemp -d)"
mkdir -p layer/bin
mv /tmp/pause layer/
cp /bin/busybox layer/bin/
chroot layer /bin/busybox --install -s /bin
tar -C layer -cf layer.tar .
digest=$(sha256sum layer.tar | cut -d ' ' -f 1)
cat >config.json <<CONFIG
{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"], "Env": ["PATH=/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
CONFIG
cat >manifest.json <<MANIFEST
[{"Config": "config.json", "RepoTags": ["registry.example.com/pause:1"], "Layers": ["layer.tar"]}]
MANIFEST
tar -cf "$1" manifest.json config.json layer.tar
rm -rf "$PWD"
"#;

/// Cluster of one node.
#[derive(Debug)]
pub struct Kubernetes<'lab> {
    host: Host<'lab>,
}

impl Lab {
    /// Starts a cluster. Its node has the images `registry.example.com/spc:0.1.0`, which the
    /// manifests name, and `registry.example.com/pause:1`, which contains busybox.
    pub fn kubernetes(&self) -> Result<Kubernetes<'_>> {
        let started = Instant::now();
        let host = self.host(HostOptions {
            root: Root::Kubernetes,
            ..HostOptions::default()
        })?;
        for (path, text) in FILES {
            host.write(path, text.as_bytes())?;
        }
        host.sh("chmod 755 /opt/cni/bin/*")?.ok()?;
        host.copy_in(program("pause", Libc::Gnu, &["-static"])?, "/tmp/pause")?;
        let images = "/etc/kubernetes/images";
        host.copy_in(image(Base::Trixie)?, format!("{images}/spc.tar"))?;
        let pause = format!("{images}/pause.tar");
        host.run(&["sh", "-c", PAUSE, "pause", &pause])?.ok()?;
        let address = host.address().to_string();
        let words = ["sh", START, &host.name(), &address];
        host.command(&words)?.limit(START_LIMIT).run()?.ok()?;
        host.say_cost("a Kubernetes cluster", started);
        Ok(Kubernetes { host })
    }
}

impl<'lab> Kubernetes<'lab> {
    /// Returns the node.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }

    /// Runs kubectl.
    pub fn kubectl(&self, words: &[&str]) -> Result<Output> {
        self.host.run(&[&["kubectl"], words].concat())
    }

    /// Applies the unchanged base of the CSI drivers, and waits until kubelet knows the drivers.
    pub fn install_drivers(&self) -> Result<()> {
        self.apply_base("node")?;
        self.wait_for_drivers()
    }

    /// Runs `kubectl apply -k` with a base of `image/kubernetes`, which the node then has in
    /// `/root/kubernetes`.
    pub fn apply_base(&self, base: &str) -> Result<()> {
        let directory = format!("/root/kubernetes/{base}");
        for (name, content) in render::files(&format!("kubernetes/{base}"))? {
            self.host.write(format!("{directory}/{name}"), &content)?;
        }
        self.kubectl(&["apply", "--validate=false", "-k", &directory])?
            .ok()
            .map(drop)
    }

    /// Waits until the pod of the CSI drivers is ready and kubelet knows them.
    pub fn wait_for_drivers(&self) -> Result<()> {
        let status = ["rollout", "status", "-n", "spc", "daemonset/spc-csi"];
        self.kubectl(&status)?.ok()?;
        let name = self.host.name();
        let list = [
            "get",
            "csinode",
            &name,
            "-o",
            "jsonpath={.spec.drivers[*].name}",
        ];
        let end = Instant::now() + REGISTRATION_LIMIT;
        loop {
            let drivers = self.kubectl(&list)?.ok()?.text();
            if DRIVERS.iter().all(|driver| drivers.contains(driver)) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "kubelet knows only {drivers:?}");
            sleep(Duration::from_millis(200));
        }
    }

    /// Runs Helm. The node then has the chart in `/root/chart`.
    pub fn helm(&self, words: &[&str]) -> Result<Output> {
        let helm = "/usr/local/bin/helm";
        if !self.host.run(&["test", "-e", helm])?.success() {
            self.host.copy_in(render::programs()?.join("helm"), helm)?;
            for directory in ["chart", "chart/templates"] {
                for (name, content) in render::files(directory)? {
                    self.host
                        .write(format!("/root/{directory}/{name}"), &content)?;
                }
            }
        }
        self.host.run(&[&[helm], words].concat())
    }

    /// Kills kubelet, starts another one, and waits until it serves the node.
    pub fn restart_kubelet(&self) -> Result<()> {
        let script = format!(
            r#"kill -9 $(cat /run/kubelet.pid)
            sh {KUBELET} "$1" "$2"
            until wget -q -O /dev/null http://127.0.0.1:10248/healthz; do sleep 0.1; done"#
        );
        let address = self.host.address().to_string();
        let words = ["sh", "-c", &script, "restart", &self.host.name(), &address];
        self.host.run(&words)?.ok().map(drop)
    }

    /// Runs `kubectl apply` with objects in YAML or JSON. The server ignores fields that are newer
    /// than its version.
    pub fn apply(&self, objects: &[u8]) -> Result<()> {
        let apply = self
            .host
            .command(&["kubectl", "apply", "--validate=false", "-f", "-"])?;
        apply.input(objects)?.run()?.ok().map(drop)
    }
}

/// Returns the cluster that all tests of this process share, or `None` where there is no lab.
pub fn kubernetes() -> Option<&'static Kubernetes<'static>> {
    static CLUSTER: OnceLock<Kubernetes<'static>> = OnceLock::new();
    let lab = shared()?;
    let start = || lab.kubernetes().unwrap_or_else(|error| panic!("{error:?}"));
    Some(CLUSTER.get_or_init(start))
}
