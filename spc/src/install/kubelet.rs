//! Directory in which kubelet looks for FlexVolume drivers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::install::tree::below;

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
pub fn plugin_dir(root: &Path) -> Option<PathBuf> {
    let processes = fs::read_dir(below(root, "/proc")).ok()?;
    let kubelet = processes.filter_map(|entry| {
        let cmdline = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let argv: Vec<String> = cmdline
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let program = Path::new(argv.first()?).file_name()?;
        (program == "kubelet").then_some(argv)
    });
    let argv = kubelet.into_iter().next()?;
    let dir = flag(&argv, "volume-plugin-dir").or_else(|| {
        let config = fs::read_to_string(below(root, flag(&argv, "config")?)).ok()?;
        configured(&config)
    });
    dir.map(PathBuf::from).filter(|dir| dir.is_absolute())
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
        tree.write("proc/1/cmdline", "/sbin/init\0");
        tree.write("proc/42/cmdline", &argv.replace(' ', "\0"));
        tree.write("proc/43/cmdline", "vi\0kubelet\0--volume-plugin-dir=/no\0");
    }

    #[test]
    fn plugin_dir_comes_from_the_command_line_or_configuration_of_a_running_kubelet() {
        let tree = Tree::new("kubelet");
        assert_eq!(plugin_dir(tree.path()), None);
        kubelet(&tree, "/usr/bin/kubelet --v=2");
        assert_eq!(plugin_dir(tree.path()), None);
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
                plugin_dir(tree.path()).unwrap(),
                Path::new("/opt/plugins"),
                "{argv}"
            );
        }
        tree.write("etc/kubelet.yaml", r#"{"volumePluginDir": "/json"}"#);
        assert_eq!(plugin_dir(tree.path()).unwrap(), Path::new("/json"));
        tree.write(
            "etc/kubelet.yaml",
            "a:\n  volumePluginDir: /not/at/the/top\n",
        );
        assert_eq!(plugin_dir(tree.path()), None);
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
