//! Wrapper of the runtimes `runc` and `crun` on hosts of the lab. It removes capabilities that this
//! machine lacks from a container's configuration, and limits whose controllers it lacks, and
//! executes the real runtime.
//!
//! A machine that is itself a container may lack capabilities. `--privileged` requests all of them,
//! and the runtimes fail when one is missing. Kubernetes sets limits, and on a hybrid machine cgroup2
//! has no controllers for them. A machine that has everything gets the configuration unchanged.

use anyhow::{Context, Result};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directory of the lab's own program and of the real runtimes on a host.
pub const DIRECTORY: &str = "/usr/libexec/lab";

/// Paths at which engines find the runtimes.
pub const RUNTIMES: [&str; 2] = ["/usr/bin/crun", "/usr/sbin/runc"];

const SYS_RESOURCE: &str = "CAP_SYS_RESOURCE";

/// Names of the kernel's capabilities, by number.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    SYS_RESOURCE,
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Returns the runtime that this program was called as, if any.
pub fn called_as(name: &OsStr) -> Option<&'static str> {
    let name = Path::new(name).file_name()?;
    RUNTIMES
        .iter()
        .filter_map(|path| path.rsplit('/').next())
        .find(|runtime| name == *runtime)
}

/// Changes the files that the arguments name, and executes the real runtime. Returns only on
/// failure.
pub fn run(name: &str, arguments: Vec<OsString>) -> Result<()> {
    let missing = missing(&fs::read_to_string("/proc/self/status")?)?;
    // Without the file, cgroups are those of version 1.
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let limits = controllers.map_or_else(Vec::new, |has| unlimited(&has));
    if !missing.is_empty() || !limits.is_empty() {
        if arguments
            .iter()
            .any(|word| word == "create" || word == "run")
        {
            let bundle = option(&arguments, "-b", "--bundle").unwrap_or_else(|| PathBuf::from("."));
            rewrite(&bundle.join("config.json"), |config| {
                soften(name, config, &missing, &limits)
            })?;
        } else if let Some(process) = option(&arguments, "-p", "--process") {
            rewrite(&process, |process| drop_capabilities(process, &missing))?;
        }
    }
    let error = Command::new(Path::new(DIRECTORY).join(name))
        .args(arguments)
        .exec();
    Err(error).with_context(|| format!("cannot become the real {name}"))
}

/// Returns the capabilities outside of this process's bounding set.
fn missing(status: &str) -> Result<Vec<&'static str>> {
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .context("no bounding set")?;
    let bounding = u64::from_str_radix(bounding.trim(), 16).context("bad bounding set")?;
    Ok(CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| bounding >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect())
}

/// Returns the limits of a container's configuration whose controllers are not among these.
fn unlimited(controllers: &str) -> Vec<&'static str> {
    let has = |name: &str| controllers.split_whitespace().any(|known| known == name);
    ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !has(name))
        .collect()
}

/// Returns the value of an option, given as `-o VALUE`, `--option VALUE` or `--option=VALUE`.
fn option(arguments: &[OsString], short: &str, long: &str) -> Option<PathBuf> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == short || word == long {
            return words.next().map(PathBuf::from);
        }
        if let Some(value) = word
            .to_str()
            .and_then(|word| word.strip_prefix(long)?.strip_prefix('='))
        {
            return Some(PathBuf::from(value));
        }
    }
    None
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut value =
        serde_json::from_slice(&text).with_context(|| format!("bad JSON: {}", path.display()))?;
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn soften(name: &str, config: &mut Value, missing: &[&str], limits: &[&str]) {
    if let Some(process) = config.get_mut("process") {
        drop_capabilities(process, missing);
    }
    let resources = config.pointer_mut("/linux/resources");
    let Some(resources) = resources.and_then(Value::as_object_mut) else {
        return;
    };
    resources.retain(|name, _| !limits.contains(&name.as_str()));
    // crun needs this capability to raise the limit of locked memory, before it loads its device
    // filter.
    if name == "crun" && missing.contains(&SYS_RESOURCE) {
        resources.remove("devices");
    }
}

fn drop_capabilities(process: &mut Value, missing: &[&str]) {
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for set in sets
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        set.retain(|name| name.as_str().is_none_or(|name| !missing.contains(&name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_bounding_set_names_what_is_missing() {
        assert_eq!(
            missing("CapEff:\t0\nCapBnd:\t000001fffeffffff\n").unwrap(),
            ["CAP_SYS_RESOURCE"]
        );
        assert!(missing("CapBnd:\t000001ffffffffff\n").unwrap().is_empty());
        assert!(missing("CapEff:\t0\n").is_err());
    }

    #[test]
    fn options_are_found_in_every_spelling() {
        for words in [
            vec!["exec", "-p", "/x"],
            vec!["exec", "--process", "/x"],
            vec!["exec", "--process=/x"],
        ] {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            assert_eq!(
                option(&words, "-p", "--process"),
                Some(PathBuf::from("/x")),
                "{words:?}"
            );
        }
        assert_eq!(
            option(&["--processes".into(), "/x".into()], "-p", "--process"),
            None
        );
    }

    #[test]
    fn only_what_is_missing_is_taken_away() {
        let mut config = json!({
            "process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"]}},
            "linux": {"resources": {"devices": [], "memory": {"limit": 9}, "pids": {"limit": 5}}},
        });
        let limits = unlimited("cpu pids hugetlb\n");
        soften("crun", &mut config, &["CAP_SYS_RESOURCE"], &limits);
        let expected = json!({
            "process": {"capabilities": {"bounding": ["CAP_CHOWN"]}},
            "linux": {"resources": {"pids": {"limit": 5}}},
        });
        assert_eq!(config, expected);
    }
}
