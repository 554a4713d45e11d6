//! Kubernetes' own schemas of its API objects, from a Python package. Validation needs no cluster.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cache::{Key, cached, remove};
use crate::machine;

/// The package and its dependencies.
const REQUIREMENTS: [&str; 10] = [
    "PyYAML==6.0.3",
    "attrs==26.1.0",
    "importlib_resources==7.1.0",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "kubernetes-validate==1.37.0",
    "packaging==26.3",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "typing_extensions==4.16.0",
];

/// Oldest and newest version of Kubernetes whose schemas are checked.
pub const VERSIONS: [&str; 2] = ["1.30", "1.37"];

const PYTHON: &str = "/usr/bin/python3";

/// Reads all objects of a manifest.
pub fn objects(manifest: &Path) -> Result<Vec<Value>> {
    let script =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let words = ["-c".as_ref(), script.as_ref(), manifest.as_os_str()];
    let output = python(&words)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {error}", manifest.display());
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Validates a manifest against the schemas of one version, which refuse unknown fields.
pub fn validate(manifest: &Path, version: &str) -> Result<()> {
    let options = [
        "-m",
        "kubernetes_validate",
        "--strict",
        "--quiet",
        "-k",
        version,
    ];
    let words: Vec<&OsStr> = options
        .iter()
        .map(OsStr::new)
        .chain([manifest.as_os_str()])
        .collect();
    let output = python(&words)?;
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {output_text}",
        manifest.display()
    );
    Ok(())
}

fn python(words: &[&OsStr]) -> Result<Output> {
    let mut command = Command::new(PYTHON);
    let output = command.args(words).env("PYTHONPATH", package()?).output();
    output.with_context(|| format!("cannot run {PYTHON}"))
}

/// Returns the package, installed now if the cache lacks it.
fn package() -> Result<PathBuf> {
    // Parts of the package are compiled for one version of Python.
    let version = Command::new(PYTHON).arg("--version").output();
    let version = version.with_context(|| format!("cannot run {PYTHON}"))?;
    let mut key = Key::new(include_str!("kubernetes.rs"));
    key.add(&version.stdout);
    cached("kubernetes", key, |path| {
        let options = [
            "install",
            "--root-user-action=ignore",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--only-binary=:all:",
            "--target",
        ];
        let words: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        let wanted = REQUIREMENTS.map(OsStr::new);
        let words = [&words[..], &[path.as_os_str()], &wanted].concat();
        machine::run("/usr/bin/pip3", &words)?;
        // The package has every version twice. The unused half is 100 MB.
        for entry in fs::read_dir(path.join("kubernetes_validate/kubernetes-json-schema"))? {
            let entry = entry?;
            let name = entry.file_name();
            let wanted = VERSIONS.map(|version| format!("v{version}.0-local-strict"));
            if !wanted.iter().any(|wanted| name == wanted.as_str()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    })
}
