//! Where kubelet looks for FlexVolume drivers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::install::tree::below;

/// Where it looks if nobody tells it otherwise.
pub const DEFAULT: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

/// The driver `spc/spc` of pods, in a directory of that.
const DRIVER: &str = "spc~spc/spc";

/// The driver's file in a plugin directory.
pub fn driver(plugins: &Path) -> PathBuf {
    plugins.join(DRIVER)
}

/// Whether this is a driver of ours in some plugin directory.
pub fn is_driver(path: &Path) -> bool {
    path.ends_with(DRIVER)
}

/// What the kubelet of the host whose procfs is at `root/proc` was told: on its command line, or else in its
/// configuration. None if none runs, or if it was told nothing.
pub fn plugins(root: &Path) -> Option<PathBuf> {
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
    let told = flag(&argv, "volume-plugin-dir").or_else(|| {
        let config = fs::read_to_string(below(root, flag(&argv, "config")?)).ok()?;
        configured(&config)
    });
    told.map(PathBuf::from).filter(|dir| dir.is_absolute())
}

/// The value of the last `--NAME VALUE` or `--NAME=VALUE`.
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

/// `volumePluginDir` at the top of a KubeletConfiguration, which is YAML, or JSON.
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
    fn a_running_kubelet_is_asked() {
        let tree = Tree::new("kubelet");
        assert_eq!(plugins(tree.path()), None);
        kubelet(&tree, "/usr/bin/kubelet --v=2");
        assert_eq!(plugins(tree.path()), None);
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
                plugins(tree.path()).unwrap(),
                Path::new("/opt/plugins"),
                "{argv}"
            );
        }
        tree.write("etc/kubelet.yaml", r#"{"volumePluginDir": "/json"}"#);
        assert_eq!(plugins(tree.path()).unwrap(), Path::new("/json"));
        tree.write(
            "etc/kubelet.yaml",
            "a:\n  volumePluginDir: /not/at/the/top\n",
        );
        assert_eq!(plugins(tree.path()), None);
    }

    #[test]
    fn the_driver_is_in_a_directory_of_its_vendor() {
        let path = driver(Path::new(DEFAULT));
        assert!(path.ends_with("exec/spc~spc/spc") && is_driver(&path));
        assert!(!is_driver(Path::new("/usr/sbin/spc")));
    }
}
