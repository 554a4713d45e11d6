//! CONTRIBUTING.md, section "Add a file system": the files that it names exist, and it names every
//! file that knows sshfs or bindfs.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it cannot read")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kinds that stand for NAME in a path. One of them has the file.
const NAMES: [&str; 4] = ["sshfs", "bindfs", "nfs", "gluster"];

/// Files that the guide need not name: a path, or a directory with `/` at its end; the kinds that
/// the file may mention; the reason.
const EXEMPT: &[(&str, &[&str], &str)] = &[
    ("CONTRIBUTING.md", &["sshfs", "bindfs"], "the guide"),
    (
        "spc/tests/contributing.rs",
        &["sshfs", "bindfs"],
        "its test",
    ),
    ("docs/clients.md", &["sshfs"], "an example of a daemon"),
    ("docs/operate.md", &["sshfs"], "an example of a daemon"),
    ("docs/run.md", &["sshfs"], "an example of a FUSE program"),
    (
        "tests/tests/all/mount/apparmor.rs",
        &["sshfs"],
        "an example of a daemon",
    ),
    (
        "tests/tests/all/install/automounts.rs",
        &["sshfs", "bindfs"],
        "a test of all kinds with a helper",
    ),
    (
        "tests/tests/all/mount/selinux.rs",
        &["sshfs"],
        "an example of a daemon",
    ),
    ("docs/metrics.md", &["sshfs"], "an example of a label"),
    (
        "spc/src/volume/spec.rs",
        &["sshfs"],
        "an example of a type with other forms",
    ),
    ("docs/logs.md", &["bindfs"], "an example of a log line"),
    (
        "docs/repair.md",
        &["sshfs", "bindfs"],
        "examples of daemons",
    ),
    (
        "docs/kubernetes/flexvolume.md",
        &["bindfs"],
        "an example of a type that pods may not have",
    ),
    (
        "tests/fuzz/corpus/argv/mount",
        &["sshfs"],
        "an example of a command line",
    ),
    (
        "tests/tests/all/kubernetes/",
        &["sshfs", "bindfs"],
        "tests of all pods need a kind with a secret, and one that pods may not have",
    ),
    (
        "tests/tests/all/unmount/",
        &["sshfs", "bindfs"],
        "tests of all mounts need a server that hangs, and any daemon",
    ),
    (
        "tests/tests/all/",
        &["bindfs"],
        "the smallest FUSE program of the image serves tests of other subjects",
    ),
];

/// One step of the section; step 0 is the text before the first.
#[derive(Default)]
struct Step {
    text: String,
    /// Paths, with NAME where the guide has it.
    paths: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn named(path: &str, name: &str) -> String {
    path.replace("NAME", name)
}

/// Steps of the section, each at its number.
fn steps() -> Vec<Step> {
    let guide = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let (_, section) = guide.split_once("\n## Add a file system\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut steps = vec![Step::default()];
    for line in section.lines() {
        if line.starts_with(&format!("{}. ", steps.len())) {
            steps.push(Step::default());
        }
        let text = &mut steps.last_mut().unwrap().text;
        text.push_str(line.trim());
        text.push(' ');
    }
    for step in &mut steps {
        step.paths = paths(&step.text);
    }
    steps
}

/// Paths that a text has in backticks. A file name without a directory is beside the path before
/// it, unless the checkout has it at its top.
fn paths(text: &str) -> Vec<String> {
    let mut directory = String::new();
    let mut paths = Vec::new();
    for quoted in text.split('`').skip(1).step_by(2) {
        let word = quoted.split_whitespace().next().unwrap_or_default();
        let is_file = word.ends_with(".rs") || word.ends_with(".md");
        let path = match word.rsplit_once('/') {
            _ if word.starts_with('/') => continue,
            Some((above, _)) => {
                directory = above.to_owned();
                word.to_owned()
            }
            None if is_file && root().join(word).exists() => word.to_owned(),
            None if is_file => format!("{directory}/{word}"),
            None => continue,
        };
        paths.push(path);
    }
    paths
}

/// Numbers of the steps that a sentence of the guide gives: the text between `before` and `after`.
fn numbers(text: &str, before: &str, after: &str) -> BTreeSet<usize> {
    let Some((_, rest)) = text.split_once(before) else {
        panic!("the section does not say {before:?}");
    };
    let list = rest.split(after).next().unwrap();
    let numbers = list.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Files that git tracks, or all files where the checkout is no repository.
fn files() -> Vec<String> {
    let root = root();
    if root.join(".git").exists() {
        let list = Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(&root)
            .output();
        if let Some(list) = list.ok().filter(|list| list.status.success()) {
            let list = String::from_utf8(list.stdout).unwrap();
            let names = list.split('\0').filter(|name| root.join(name).is_file());
            return names.map(str::to_owned).collect();
        }
    }
    let mut found = Vec::new();
    walk(&root, "", &mut found);
    found
}

fn walk(root: &Path, below: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{below}{name}");
        let kind = entry.file_type().unwrap();
        if kind.is_file() {
            found.push(path);
        } else if kind.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
            walk(root, &format!("{path}/"), found);
        }
    }
}

/// Returns whether a text has this word, with no letter, digit or `_` beside it.
fn has_word(text: &[u8], word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let mut windows = text.windows(word.len()).enumerate();
    windows.any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|at| text.get(at));
        window == word.as_bytes() && !is_part(before) && !is_part(text.get(at + word.len()))
    })
}

/// Files that mention a kind. Unit tests do not count: they use kinds as examples.
fn mentions(name: &str) -> Vec<String> {
    let mut files = files();
    files.retain(|file| {
        let mut text = fs::read(root().join(file)).unwrap();
        if file.starts_with("spc/src/") && file.ends_with(".rs") {
            let code = String::from_utf8(text).unwrap();
            text = code.split("#[cfg(test)]").next().unwrap().into();
        }
        has_word(&text, name)
    });
    files
}

fn covers(path: &str, file: &str) -> bool {
    file == path || file.starts_with(&format!("{}/", path.trim_end_matches('/')))
}

/// Checks that the steps of a kind name all files that mention it, and that each of these steps has
/// such a file. Fills in the exemptions that were needed.
fn check(
    steps: &[Step],
    name: &str,
    needed: &BTreeSet<usize>,
    used: &mut BTreeSet<(usize, String)>,
) {
    let mentions = mentions(name);
    let covered = |step: usize, file: &str| {
        let mut paths = steps[step].paths.iter();
        paths.any(|path| covers(&named(path, name), file))
    };
    for step in needed {
        assert!(
            mentions.iter().any(|file| covered(*step, file)),
            "step {step} is one of {name}, but none of its files mentions {name}"
        );
    }
    let mut missing = Vec::new();
    for file in mentions {
        if needed.iter().any(|step| covered(*step, &file)) {
            continue;
        }
        let mut exempt = EXEMPT.iter();
        let exempt =
            exempt.position(|(path, names, _)| names.contains(&name) && covers(path, &file));
        match exempt {
            Some(at) => drop(used.insert((at, name.to_owned()))),
            None => missing.push(file),
        }
    }
    assert!(
        missing.is_empty(),
        "files mention {name}, and no step of {name} in CONTRIBUTING.md names them:\n{}",
        missing.join("\n")
    );
}

#[test]
fn the_guide_names_files_that_exist() {
    let mut missing = Vec::new();
    let mut all = 0;
    for (number, step) in steps().iter().enumerate() {
        for path in &step.paths {
            all += 1;
            let exists = |name: &str| root().join(named(path, name)).exists();
            if !NAMES.iter().any(|name| exists(name)) {
                missing.push(format!("step {number}: {path}"));
            }
        }
    }
    assert!(all > 20, "only {all} paths found");
    assert!(missing.is_empty(), "not there:\n{}", missing.join("\n"));
}

#[test]
fn the_guide_names_every_file_that_knows_a_fuse_program() {
    let steps = steps();
    let intro = &steps[0].text;
    let bindfs = numbers(intro, "bindfs has steps ", " only");
    let others = numbers(intro, "sshfs has all but ", ".");
    let sshfs = (1..steps.len()).filter(|step| !others.contains(step));
    let mut used = BTreeSet::new();
    check(&steps, "sshfs", &sshfs.collect(), &mut used);
    check(&steps, "bindfs", &bindfs, &mut used);
    for (at, (path, names, reason)) in EXEMPT.iter().enumerate() {
        for name in *names {
            assert!(
                used.contains(&(at, (*name).to_owned())),
                "{path} is exempt for {name} without need: {reason}"
            );
        }
    }
}

#[test]
fn words_and_paths_are_found() {
    assert!(has_word(b"type fuse.sshfs,", "sshfs") && has_word(b"sshfs", "sshfs"));
    assert!(!has_word(b"sshfs_mounts xsshfs", "sshfs"));
    let text = "`a/b/`: `c.rs`, `/dev/fuse`, `apt-get install`; `scripts/test unit`, `README.md`";
    let found = ["a/b/", "a/b/c.rs", "scripts/test", "README.md"];
    assert_eq!(paths(text), found);
    assert_eq!(
        numbers("has steps 1, 3 and 12 only", "steps ", "only"),
        [1, 3, 12].into()
    );
}
