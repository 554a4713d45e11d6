//! The manifests for Kubernetes, validated by Kubernetes' own schemas.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{VERSIONS, objects, parse, validate};
use lab::render::{image_directory, kustomize};
use serde_json::Value;

use crate::support::with_lab;

/// Bases of kustomize in [`directory`].
const BASES: [&str; 4] = ["node", "controller", "flexvolume", "uninstall"];

/// Directory of the manifests.
pub fn directory() -> PathBuf {
    image_directory("kubernetes")
}

/// Paths of the manifests in a directory.
pub fn manifests(name: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory().join(name))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") {
            all.push(path);
        }
    }
    all.sort();
    ensure!(all.len() > 2, "{all:?}");
    Ok(all)
}

#[test]
fn manifests_are_valid_for_kubernetes() {
    with_lab(|_| {
        let mut all = Vec::new();
        for base in BASES {
            all.extend(kustomize(&directory().join(base))?);
        }
        for examples in ["examples", "flexvolume/pods"] {
            for manifest in manifests(examples)? {
                all.extend(objects(&manifest)?);
            }
        }
        ensure!(all.len() > 60, "only {}", all.len());
        validate(&all)
    });
}

/// Checks that the files of a base can be applied one by one as well: the base changes nothing but
/// the image, and leaves no file out.
#[test]
fn a_base_is_its_files() {
    with_lab(|_| {
        let by_name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
        for base in BASES {
            let mut files = Vec::new();
            for manifest in manifests(base)? {
                if !manifest.ends_with("kustomization.yaml") {
                    files.extend(objects(&manifest)?);
                }
            }
            let mut rendered = kustomize(&directory().join(base))?;
            rendered.sort_by_key(by_name);
            files.sort_by_key(by_name);
            ensure!(rendered == files, "{base}: {rendered:#?}\n{files:#?}");
        }
        Ok(())
    });
}

#[test]
fn the_image_of_a_base_is_named_in_one_place() {
    with_lab(|_| {
        let copy = std::env::temp_dir().join(format!("spc-base-{}", std::process::id()));
        for base in BASES {
            fs::create_dir(&copy)?;
            for manifest in manifests(base)? {
                let name = manifest.file_name().context("no name")?;
                let mut text = fs::read_to_string(&manifest)?;
                if name == "kustomization.yaml" {
                    text = text
                        .replace(
                            "newName: registry.example.com/spc",
                            "newName: 192.0.2.1/own",
                        )
                        .replace("newTag: 0.1.0", "newTag: 9.9.9");
                }
                fs::write(copy.join(name), text)?;
            }
            let rendered = kustomize(&copy);
            fs::remove_dir_all(&copy)?;
            let rendered = Value::from(rendered?).to_string();
            ensure!(!rendered.contains("registry.example.com"), "{rendered}");
            ensure!(rendered.contains("192.0.2.1/own:9.9.9"), "{rendered}");
        }
        Ok(())
    });
}

/// Checks the overlay that docs/kubernetes/install.md shows, beside a checkout named `spc`.
#[test]
fn the_overlay_of_the_documents_changes_the_directory_of_kubelet() {
    with_lab(|_| {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = fs::read_to_string(checkout.join("docs/kubernetes/install.md"))?;
        let (_, block) = page.split_once("\n```yaml\n").context("no overlay")?;
        let (overlay, _) = block.split_once("\n```").context("no end")?;
        let beside = std::env::temp_dir().join(format!("spc-overlay-{}", std::process::id()));
        fs::create_dir_all(beside.join("own"))?;
        std::os::unix::fs::symlink(checkout.canonicalize()?, beside.join("spc"))?;
        fs::write(beside.join("own/kustomization.yaml"), overlay)?;
        let rendered = kustomize(&beside.join("own"));
        fs::remove_dir_all(&beside)?;
        let rendered = rendered?;
        validate(&rendered)?;
        let set = rendered.iter().find(|object| object["kind"] == "DaemonSet");
        let container = set.and_then(|set| set.pointer("/spec/template/spec/containers/0"));
        let container = container.context("no container")?;
        let command = container["command"].as_array().context("no command")?;
        let directories = command.iter().filter_map(Value::as_str);
        let directories = directories.filter(|word| word.starts_with("--kubelet-dir"));
        ensure!(
            directories.eq(["--kubelet-dir=/var/lib/k0s/kubelet"])
                && container["image"] == "registry.example.com/own:0.1.0",
            "{container:#}"
        );
        Ok(())
    });
}

#[test]
fn a_mistake_in_a_manifest_is_found() {
    with_lab(|_| {
        let good = fs::read_to_string(directory().join("node/daemonset.yaml"))?;
        validate(&parse(&good)?)?;
        for (right, wrong) in [
            ("hostPID", "hostPid"),
            ("maxUnavailable: 25%", "maxUnavailable: {}"),
            ("      containers:", "      container:"),
            ("drop: [ALL]", "drop: ALL"),
        ] {
            let bad = good.replacen(right, wrong, 1);
            ensure!(bad != good, "not in the manifest: {right}");
            let error = validate(&parse(&bad)?).err().map(|error| error.to_string());
            let refused = error.as_ref().is_some_and(|error| {
                VERSIONS
                    .iter()
                    .all(|version| error.contains(&format!("did not validate for {version}")))
            });
            ensure!(refused, "{wrong}: {error:?}");
        }
        Ok(())
    });
}

/// Checks that each row of the table of kinds has an example pod, and that each example fits
/// kubelet's rules.
#[test]
fn flexvolume_has_an_example_pod_of_each_kind() {
    with_lab(|_| {
        let mut types = Vec::new();
        for manifest in manifests("flexvolume/pods")? {
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
