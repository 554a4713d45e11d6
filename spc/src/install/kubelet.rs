//! Directory in which kubelet looks for FlexVolume drivers.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::install::tree::below;
use crate::process::candidates::Status;
use crate::process::procfs;

/// Default of kubelet's `--volume-plugin-dir`.
pub const DEFAULT_DIR: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

/// Name of the driver that leaves the pod's group to mount options. The other driver, `spc`, has
/// kubelet change the group of each file.
pub const NO_FSGROUP: &str = "no-fsgroup";

/// Paths of the drivers that pods name `spc/spc` and `spc/no-fsgroup`, relative to the plugin
/// directory.
const DRIVERS: [&str; 2] = ["spc~spc/spc", "spc~no-fsgroup/no-fsgroup"];

/// Returns the paths of the drivers in a plugin directory.
pub fn driver_paths(plugin_dir: &Path) -> Vec<PathBuf> {
    DRIVERS.map(|driver| plugin_dir.join(driver)).into()
}

/// Returns the plugin directory with this driver, if the path names a driver of spc.
pub fn plugin_dir_of(path: &Path) -> Option<&Path> {
    let is_driver = DRIVERS.iter().any(|driver| path.ends_with(driver));
    is_driver.then(|| path.ancestors().nth(2)).flatten()
}

/// Returns the plugin directory of the kubelet that runs on the host, whose procfs is at
/// `root/proc`.
///
/// `--volume-plugin-dir` on its command line comes first, then `volumePluginDir` in the file that
/// `--config` names. Returns `None` if no kubelet runs, neither is set, or the path is not
/// absolute.
///
/// # Errors
/// More than one kubelet runs.
pub fn plugin_dir(root: &Path) -> Result<Option<PathBuf>> {
    let processes = fs::read_dir(below(root, "/proc")).into_iter().flatten();
    let processes = processes.flatten().map(|entry| entry.path());
    let kubelets: Vec<PathBuf> = processes.filter(|process| is_kubelet(process)).collect();
    let kubelet = match &kubelets[..] {
        [] => return Ok(None),
        [kubelet] => kubelet,
        _ => {
            let ids = kubelets.iter().filter_map(|process| process.file_name());
            let ids: Vec<String> = ids.map(|id| id.to_string_lossy().into_owned()).collect();
            return Err(Error::system("cannot tell where kubelet looks for drivers")
                .because(format!(
                    "{} processes are called kubelet: {}",
                    ids.len(),
                    ids.join(", ")
                ))
                .hint("name the directory: --flexvolume=DIRECTORY"));
        }
    };
    let dir = || {
        let cmdline = procfs::read(kubelet.join("cmdline")).ok()?;
        let words = cmdline.split(|byte| *byte == 0);
        let argv: Vec<String> = words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        flag(&argv, "volume-plugin-dir").or_else(|| {
            let config = procfs::read_text(below(root, flag(&argv, "config")?)).ok()?;
            configured(&config)
        })
    };
    Ok(dir().map(PathBuf::from).filter(|dir| dir.is_absolute()))
}

/// Returns whether a process is a kubelet: root runs a program of that name in the PID namespace of
/// the host. Users and pods can have processes of any name.
fn is_kubelet(process: &Path) -> bool {
    // Another user's process may delay reads of its other files.
    let status = Status::read(process).ok().flatten();
    if !status.is_some_and(|status| status.has_users([0; 4]) && status.ids.len() == 1) {
        return false;
    }
    let exe = fs::read_link(process.join("exe")).unwrap_or_default();
    let name = exe.file_name().map(OsStr::to_string_lossy);
    // The kernel marks a program that was replaced, as by an upgrade.
    name.is_some_and(|name| matches!(&*name, "kubelet" | "kubelet (deleted)"))
}

/// Returns the value of the last `--NAME VALUE` or `--NAME=VALUE`.
fn flag(argv: &[String], name: &str) -> Option<String> {
    argv.iter().enumerate().rev().find_map(|(at, word)| {
        let rest = word.trim_start_matches('-').strip_prefix(name)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_owned()),
            None if rest.is_empty() => argv.get(at + 1).cloned(),
            None => None,
        }
    })
}

/// Returns the top-level `volumePluginDir` of a KubeletConfiguration, which is YAML or JSON.
fn configured(config: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(config) {
        return Some(json.get("volumePluginDir")?.as_str()?.to_owned());
    }
    let mut values = config.lines().filter_map(|line| {
        let value = line.strip_prefix("volumePluginDir:")?;
        let value = value.split(" #").next()?.trim();
        Some(value.trim_matches(['"', '\'']).to_owned())
    });
    values.next().filter(|dir| !dir.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    fn kubelet(tree: &Tree, argv: &str) {
        process(tree, 1, "/sbin/init", "/sbin/init", "");
        process(tree, 42, "/usr/bin/kubelet", argv, ROOT);
        process(
            tree,
            43,
            "/usr/bin/vi",
            "vi kubelet --volume-plugin-dir=/no",
            ROOT,
        );
        let evil = "kubelet --volume-plugin-dir=/tmp/evil";
        process(
            tree,
            7,
            "/tmp/kubelet",
            evil,
            "Uid:\t1000\t1000\t1000\t1000\nNSpid:\t7\n",
        );
        process(
            tree,
            8,
            "/tmp/kubelet",
            evil,
            "Uid:\t1000\t0\t0\t0\nNSpid:\t8\n",
        );
        process(
            tree,
            9,
            "/kubelet",
            evil,
            "Uid:\t0\t0\t0\t0\nNSpid:\t9\t1\n",
        );
        process(tree, 10, "/usr/bin/sleep", evil, ROOT);
    }

    /// Status of a process of root in the host's PID namespace.
    const ROOT: &str = "PPid:\t1\nUid:\t0\t0\t0\t0\nNSpid:\t42\n";

    fn process(tree: &Tree, pid: u32, exe: &str, argv: &str, status: &str) {
        tree.write(&format!("proc/{pid}/cmdline"), &argv.replace(' ', "\0"));
        tree.write(&format!("proc/{pid}/status"), status);
        let link = tree.path().join(format!("proc/{pid}/exe"));
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(exe, link).unwrap();
    }

    #[test]
    fn plugin_dir_comes_from_the_command_line_or_configuration_of_a_running_kubelet() {
        let tree = Tree::new("kubelet");
        assert_eq!(plugin_dir(tree.path()).unwrap(), None);
        kubelet(&tree, "/usr/bin/kubelet --v=2");
        assert_eq!(plugin_dir(tree.path()).unwrap(), None);
        for argv in [
            "/usr/bin/kubelet --volume-plugin-dir=/opt/plugins --v=2",
            "kubelet --volume-plugin-dir /opt/plugins --v=2",
            "kubelet --config=/etc/kubelet.yaml",
        ] {
            tree.write(
                "etc/kubelet.yaml",
                "kind: KubeletConfiguration\nvolumePluginDir: \"/opt/plugins\" # ours\n",
            );
            kubelet(&tree, argv);
            assert_eq!(
                plugin_dir(tree.path()).unwrap().unwrap(),
                Path::new("/opt/plugins"),
                "{argv}"
            );
        }
        tree.write("etc/kubelet.yaml", r#"{"volumePluginDir": "/json"}"#);
        assert_eq!(
            plugin_dir(tree.path()).unwrap().unwrap(),
            Path::new("/json")
        );
        tree.write(
            "etc/kubelet.yaml",
            "a:\n  volumePluginDir: /not/at/the/top\n",
        );
        assert_eq!(plugin_dir(tree.path()).unwrap(), None);
    }

    #[test]
    fn two_kubelets_are_an_error() {
        let tree = Tree::new("kubelets");
        for pid in [42, 44] {
            process(&tree, pid, "/usr/bin/kubelet (deleted)", "kubelet", ROOT);
        }
        let error = plugin_dir(tree.path()).unwrap_err().to_string();
        assert!(
            error.contains("--flexvolume=") && error.contains("44"),
            "{error}"
        );
    }

    #[test]
    fn driver_path_is_below_the_vendor_directory() {
        let paths = driver_paths(Path::new(DEFAULT_DIR));
        assert!(paths[0].ends_with("exec/spc~spc/spc"));
        assert!(paths[1].ends_with(format!("spc~{NO_FSGROUP}/{NO_FSGROUP}")));
        for path in paths {
            assert_eq!(plugin_dir_of(&path), Some(Path::new(DEFAULT_DIR)));
        }
        assert_eq!(plugin_dir_of(Path::new("/usr/sbin/spc")), None);
    }
}
