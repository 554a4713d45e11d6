//! The base of the CSI drivers, started by docker as a node would, and the volumes of the examples
//! and of the page about migration, given to the drivers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{objects, parse, validate};
use lab::render::kustomize;
use lab::{Base, Engine, Lab, Propagation};
use serde_json::Value;
use tonic::Code;

use crate::kubernetes::csi::{Client, CsiVolume, DISK, MAPPED, Mode, SHARE};
use crate::kubernetes::daemonset::{options, probes};
use crate::kubernetes::kubelet::ROOT;
use crate::kubernetes::manifests::{directory, manifests};
use crate::support::{Spc, until, with_lab};

/// Type of the file system of each kind that has an example.
const TYPES: [&str; 9] = [
    "ceph",
    "ceph-fuse",
    "cifs",
    "ext4",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "nfs",
    "xfs",
];

/// Name of a pod whose directory is a file.
const NO_POD: &str = "none";

/// Node with the drivers, in the container of their DaemonSet.
struct Node<'lab> {
    spc: Spc<'lab>,
    drivers: Vec<Client>,
}

impl<'lab> Node<'lab> {
    fn start(lab: &'lab Lab) -> Result<Self> {
        let objects = kustomize(&directory().join("node"))?;
        let pod = pod_of(&objects)?;
        let container = &pod["containers"][0];
        let spc = Spc::loaded(lab, Propagation::Shared, Engine::Docker, Base::Trixie)?;
        let start = ["docker", "run", "-d", "--name", "spc"].map(str::to_owned);
        start_container(&spc, &start, pod, container)?;
        probes(&spc.host, "spc", container)?;
        until("the drivers are there", || {
            Ok(spc.log()?.contains("serving CSI"))
        })?;
        spc.host.write(format!("{ROOT}/pods/{NO_POD}"), b"")?;
        let drivers = [SHARE, MAPPED, DISK].map(|driver| Client::register(&spc, driver));
        let drivers = drivers.into_iter().collect::<Result<_>>()?;
        Ok(Self { spc, drivers })
    }

    fn driver(&self, name: &Value) -> Result<&Client> {
        let driver = self.drivers.iter().find(|driver| *name == driver.driver);
        driver.with_context(|| format!("no driver {name}"))
    }

    /// Checks that the drivers have nothing against the volumes of these objects. Their servers do
    /// not exist, so the directory to mount on is missing. Returns the types of the PersistentVolumes.
    fn accepts(&self, all: &[Value]) -> Result<Vec<String>> {
        let mut types = Vec::new();
        for object in all {
            let named = || format!("{} {}", object["kind"], object["metadata"]["name"]);
            if let Some(csi) = object.pointer("/spec/csi") {
                let volume = persistent(&object["spec"], csi, all).with_context(named)?;
                let refused = self
                    .driver(&csi["driver"])?
                    .stage_within(super::csi::LIMIT, &volume);
                is_accepted(refused).with_context(named)?;
                types.push(volume.fs_type);
            }
            let volumes = object.pointer("/spec/volumes").and_then(Value::as_array);
            for volume in volumes.into_iter().flatten() {
                if let Some(csi) = volume.get("csi") {
                    let volume = described("inline", csi, "nodePublishSecretRef", all)?;
                    let driver = self.driver(&csi["driver"])?;
                    let refused = driver.publish_as(driver.inline_request(&volume, NO_POD));
                    is_accepted(refused).with_context(named)?;
                }
            }
        }
        Ok(types)
    }
}

fn is_accepted(refused: std::result::Result<(), tonic::Status>) -> Result<()> {
    let status = refused.err().context("mounted")?;
    ensure!(
        status.code() == Code::Internal && status.message().contains(": bad target "),
        "{status:?}"
    );
    Ok(())
}

fn strings(object: Option<&Value>) -> HashMap<String, String> {
    let fields = object.and_then(Value::as_object).into_iter().flatten();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    fields.filter_map(text).collect()
}

/// Volume as kubelet describes it to a driver.
fn described(id: &str, csi: &Value, secret: &str, all: &[Value]) -> Result<CsiVolume> {
    let mut volume = CsiVolume::new(id, csi["fsType"].as_str().unwrap_or_default(), &[]);
    volume.attributes = strings(csi.get("volumeAttributes"));
    ensure!(!volume.attributes.is_empty(), "no attributes: {csi}");
    volume.read_only = csi["readOnly"] == true;
    if let Some(reference) = csi.get(secret) {
        let found = all.iter().find(|object| {
            object["kind"] == "Secret" && object["metadata"]["name"] == reference["name"]
        });
        let found = found.with_context(|| format!("no secret {reference}"))?;
        volume.secrets = strings(found.get("stringData"));
    }
    Ok(volume)
}

/// Volume of a PersistentVolume.
fn persistent(spec: &Value, csi: &Value, all: &[Value]) -> Result<CsiVolume> {
    let id = csi["volumeHandle"].as_str().context("no handle")?;
    let mut volume = described(id, csi, "nodeStageSecretRef", all)?;
    let options = spec["mountOptions"].as_array().into_iter().flatten();
    volume.mount_options = options
        .filter_map(|o| Some(o.as_str()?.to_owned()))
        .collect();
    volume.mode = Some(match spec["accessModes"][0].as_str() {
        Some("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        Some("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        _ => Mode::SingleNodeMultiWriter,
    });
    Ok(volume)
}

/// Checks that a PersistentVolume has the claim that it names.
fn has_claim(object: &Value, all: &[Value]) -> Result<()> {
    let spec = &object["spec"];
    ensure!(spec["persistentVolumeReclaimPolicy"] == "Retain", "{spec}");
    let claims = all
        .iter()
        .filter(|object| object["kind"] == "PersistentVolumeClaim");
    let claim = claims.into_iter().find(|claim| {
        claim["spec"]["volumeName"] == object["metadata"]["name"]
            && claim["metadata"]["name"] == spec["claimRef"]["name"]
    });
    let claim = &claim.context("no claim")?["spec"];
    ensure!(
        claim["accessModes"] == spec["accessModes"]
            && claim["storageClassName"] == spec["storageClassName"]
            && claim["resources"]["requests"] == spec["capacity"],
        "{claim}"
    );
    Ok(())
}

#[test]
fn the_drivers_of_the_manifest_accept_each_example() {
    with_lab(|lab| {
        let node = Node::start(lab)?;
        let mut types = Vec::new();
        for manifest in manifests("examples")? {
            let here = || manifest.display().to_string();
            let objects = objects(&manifest)?;
            types.extend(node.accepts(&objects).with_context(here)?);
            for volume in objects.iter().filter(|o| o["kind"] == "PersistentVolume") {
                has_claim(volume, &objects).with_context(here)?;
            }
        }
        types.sort();
        ensure!(types == TYPES, "{types:?}");

        // A mistake in an example is found.
        let good = fs::read_to_string(directory().join("examples/glusterfs.yaml"))?;
        for (right, wrong, error) in [
            ("servers:", "server:", "unknown option: server"),
            ("fsType: glusterfs", "fsType: cifs", MAPPED),
        ] {
            let bad = good.replacen(right, wrong, 1);
            ensure!(bad != good, "not there: {right}");
            let refused = node.accepts(&parse(&bad)?).err().context(wrong)?;
            ensure!(format!("{refused:?}").contains(error), "{refused:?}");
        }

        let mut types = Vec::new();
        for section in migration()? {
            validate(&section)?;
            types.extend(node.accepts(&section)?);
        }
        let expected = ["glusterfs", "ceph", "nfs", "xfs", "ext4", "cifs"];
        ensure!(types == expected, "{types:?}");
        node.spc.is_clean()?;
        uninstalls(&node.spc)
    });
}

/// Checks that the base `uninstall` leaves nothing on a node that had the CSI drivers.
fn uninstalls(spc: &Spc<'_>) -> Result<()> {
    let find = "find / -xdev -path /var/lib/kubelet -prune -o -name '*spc*' -print";
    let before = spc.host.sh(find)?.ok()?.text();
    ensure!(before.contains("/var/lib/spc"), "no clients: {before}");
    spc.host.run(&["docker", "rm", "-f", "spc"])?.ok()?;
    let objects = kustomize(&directory().join("uninstall"))?;
    let pod = pod_of(&objects)?;
    let container = &pod["initContainers"][0];
    let start = ["docker", "run", "--rm"].map(str::to_owned);
    start_container(spc, &start, pod, container)?;
    let left = spc.host.sh(find)?.ok()?.text();
    ensure!(left.is_empty(), "left:\n{left}");
    Ok(())
}

/// Pod template of the DaemonSet of a base.
fn pod_of(objects: &[Value]) -> Result<&Value> {
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let pod = set.and_then(|set| set.pointer("/spec/template/spec"));
    pod.context("no DaemonSet")
}

/// Starts a container of a pod with docker, as the node `node-1` would.
fn start_container(spc: &Spc<'_>, start: &[String], pod: &Value, container: &Value) -> Result<()> {
    let mut words = start.to_vec();
    words.extend(options(pod, container)?);
    words.push(Base::Trixie.image().to_owned());
    let command = container["command"].as_array().context("no command")?;
    let word = |word: &Value| Some(word.as_str()?.replace("$(NODE_NAME)", "node-1"));
    words.extend(command.iter().filter_map(word));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    spc.host.run(&words)?.ok().map(drop)
}

/// Objects in the YAML blocks of each section of the page about migration, old ones included.
fn migration() -> Result<Vec<Vec<Value>>> {
    let text = migration_page()?;
    let objects = |section: &str| {
        let blocks = section.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|block| Some(block.split_once("```")?.0));
        parse(&blocks.collect::<Vec<_>>().join("\n---\n"))
    };
    text.split("\n## ").map(objects).collect()
}

/// Text of the page about migration.
pub fn migration_page() -> Result<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes/migration.md");
    fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))
}
