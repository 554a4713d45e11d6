//! The manifests for Kubernetes, validated by Kubernetes' own schemas.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{VERSIONS, objects, validate};
use serde_json::Value;

use crate::support::with_lab;

/// Directory of the manifests.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/kubernetes")
}

/// Paths of all manifests.
pub fn manifests() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for place in [directory(), directory().join("pods")] {
        for entry in fs::read_dir(place)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "yaml") {
                all.push(path);
            }
        }
    }
    ensure!(all.len() > 5, "{all:?}");
    Ok(all)
}

#[test]
fn manifests_are_valid_for_kubernetes() {
    with_lab(|_| {
        for manifest in manifests()? {
            for version in VERSIONS {
                validate(&manifest, version)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_mistake_in_a_manifest_is_found() {
    with_lab(|_| {
        let good = fs::read_to_string(directory().join("spc.yaml"))?;
        let file = std::env::temp_dir().join(format!("spc-manifest-{}.yaml", std::process::id()));
        for (right, wrong) in [
            ("hostPID", "hostPid"),
            ("maxUnavailable: 25%", "maxUnavailable: {}"),
            ("      containers:", "      container:"),
            ("drop: [ALL]", "drop: ALL"),
        ] {
            let bad = good.replacen(right, wrong, 1);
            ensure!(bad != good, "not in the manifest: {right}");
            fs::write(&file, bad)?;
            let results = VERSIONS.map(|version| validate(&file, version));
            fs::remove_file(&file)?;
            for result in results {
                let error = result.err().map(|error| error.to_string());
                let refused = error
                    .as_ref()
                    .is_some_and(|error| error.contains("did not validate"));
                ensure!(refused, "{wrong}: {error:?}");
            }
        }
        Ok(())
    });
}

/// Checks that each row of the table of kinds has an example pod, and that each example fits
/// kubelet's rules.
#[test]
fn each_kind_has_a_valid_example_pod() {
    with_lab(|_| {
        let mut types = Vec::new();
        for manifest in manifests()? {
            let objects = objects(&manifest)?;
            for object in &objects {
                let Some(volume) = volume(object) else {
                    continue;
                };
                let here = || format!("{}: {volume}", manifest.display());
                let fs_type = volume["fsType"].as_str().with_context(here)?;
                let driver = match fs_type {
                    // Files without owners, which kubelet must not change.
                    "cifs" | "fuse.s3fs" | "fuse.sshfs" => "spc/no-fsgroup",
                    _ => "spc/spc",
                };
                ensure!(volume["driver"] == driver, here());
                types.push(fs_type.to_owned());
                let Some(name) = volume.pointer("/secretRef/name") else {
                    continue;
                };
                let secret = objects.iter().find(|object| {
                    object["kind"] == "Secret" && &object["metadata"]["name"] == name
                });
                // kubelet passes a driver only secrets of the driver's own type.
                let secret = secret.with_context(here)?;
                ensure!(secret["type"] == driver, "{secret}");
            }
        }
        types.sort();
        types.dedup();
        let expected = [
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
        ensure!(types == expected, "{types:?}");
        Ok(())
    });
}

/// The volume of the driver in a pod or a PersistentVolume.
pub fn volume(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "PersistentVolume" => object.pointer("/spec/flexVolume"),
        "Pod" => object.pointer("/spec/volumes/0/flexVolume"),
        _ => None,
    }
}
