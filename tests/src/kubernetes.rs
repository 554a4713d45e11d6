//! Kubernetes' own schemas of its API objects, from a Python package. Validation needs no cluster.

use anyhow::{Context, Result};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Prints the objects of a manifest, which is standard input.
const PARSE: &str = "import json, sys, yaml
print(json.dumps([object for object in yaml.safe_load_all(sys.stdin) if object]))";

/// Validates the objects of standard input against the schemas of the versions that are arguments.
const VALIDATE: &str = r#"import functools, json, sys
from kubernetes_validate import utils, validate, ValidationError
utils.schema_contents = functools.cache(utils.schema_contents)
wrong = 0
for object in json.load(sys.stdin):
    for version in sys.argv[1:]:
        try:
            validate(object, version, strict=True)
        except ValidationError as error:
            wrong += 1
            path = ".".join(map(str, error.path))
            print(f"{object['kind']} {object['metadata']['name']} did not validate for {version}: {path}: {error.message}")
sys.exit(wrong > 0)"#;

/// Parses all objects of a manifest.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&python(&[PARSE], yaml)?)?)
}

/// Reads all objects of a manifest.
pub fn objects(manifest: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(manifest);
    let text = text.with_context(|| format!("cannot read {}", manifest.display()))?;
    parse(&text).with_context(|| manifest.display().to_string())
}

/// Validates objects against the schemas of [`VERSIONS`], which refuse unknown fields. A kind
/// without a schema is an error.
pub fn validate(objects: &[Value]) -> Result<()> {
    let words = [&[VALIDATE], &VERSIONS[..]].concat();
    python(&words, &serde_json::to_string(objects)?).map(drop)
}

/// Runs a program in Python, and returns its output.
fn python(words: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(PYTHON);
    command.arg("-c").args(words).env("PYTHONPATH", package()?);
    machine::filter(command, input)
}

/// Installs Python packages in a directory, without what they depend on.
pub(crate) fn install(directory: &Path, packages: &[&str]) -> Result<()> {
    let options = [
        "install",
        "--root-user-action=ignore",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--target",
    ];
    let options = options.iter().map(OsStr::new);
    let wanted = packages.iter().map(OsStr::new);
    let words: Vec<&OsStr> = options
        .chain([directory.as_os_str()])
        .chain(wanted)
        .collect();
    machine::run("/usr/bin/pip3", &words)
}

/// Returns the package, installed now if the cache lacks it.
fn package() -> Result<PathBuf> {
    // Parts of the package are compiled for one version of Python.
    let version = Command::new(PYTHON).arg("--version").output();
    let version = version.with_context(|| format!("cannot run {PYTHON}"))?;
    let mut key = Key::new(include_str!("kubernetes.rs"));
    key.add(&version.stdout);
    cached("kubernetes", key, |path| {
        install(path, &REQUIREMENTS)?;
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
