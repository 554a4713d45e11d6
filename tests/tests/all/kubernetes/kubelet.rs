//! Plays kubelet: its FlexVolume plug-in and its mounter. Order and arguments of the calls, and the
//! treatment of the directories before and after, follow kubernetes' `pkg/volume/flexvolume`,
//! `pkg/volume/util` and `mount-utils`.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::AnyHost;
use serde_json::{Map, Value};

use crate::support::{Spc, VmSpc};

/// kubelet's root directory.
pub const ROOT: &str = "/var/lib/kubelet";

/// Directory that kubelet probes for drivers.
const PLUGINS: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

/// Directory name of the driver that a pod names `spc/spc`.
pub const DRIVER: &str = "spc~spc";

/// Directory name of the driver that a pod names `spc/no-fsgroup`.
pub const NO_FSGROUP: &str = "spc~no-fsgroup";

/// Path of the file of `spc/spc`.
pub fn driver() -> String {
    path(DRIVER)
}

/// Path of the file of a driver with this directory name.
fn path(driver: &str) -> String {
    let name = driver.rsplit('~').next().unwrap_or_default();
    format!("{PLUGINS}/{driver}/{name}")
}

/// Installs the frontends on a host.
pub fn install(spc: &Spc<'_>) -> Result<()> {
    spc.exec(&["spc", "install", "--flexvolume"])?
        .ok()
        .map(drop)
}

/// Installs them on a virtual machine, where copying takes longer.
pub fn install_there(spc: &VmSpc<'_>) -> Result<()> {
    let words = ["runc", "exec", "spc", "spc", "install", "--flexvolume"];
    let limit = Duration::from_secs(300);
    spc.host.command(&words).limit(limit).run()?.ok().map(drop)
}

/// A volume of a pod, as in a manifest.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub fs_type: String,
    pub options: Vec<(String, String)>,
    /// Data of the secret that `secretRef` names.
    pub secret: Vec<(String, String)>,
    pub read_only: bool,
}

impl Volume {
    pub fn new(fs_type: &str, options: &[(&str, &str)]) -> Self {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Self {
            fs_type: fs_type.to_owned(),
            options: options.iter().map(own).collect(),
            ..Self::default()
        }
    }

    pub fn secret(mut self, key: &str, value: &str) -> Self {
        self.secret.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A pod with one volume.
#[derive(Clone, Debug)]
pub struct Pod {
    pub uid: String,
    pub volume: Volume,
    pub fs_group: Option<u32>,
    /// Directory name of the driver.
    pub driver: &'static str,
}

impl Pod {
    pub fn new(uid: &str, volume: Volume) -> Self {
        Self {
            uid: uid.to_owned(),
            volume,
            fs_group: None,
            driver: DRIVER,
        }
    }

    /// Directory where the volume is mounted.
    pub fn directory(&self) -> String {
        format!("{ROOT}/pods/{}/volumes/{}/data", self.uid, self.driver)
    }
}

/// kubelet on a host, after it probed the driver.
pub struct Kubelet<'a, H> {
    host: &'a H,
    /// Drivers that said in their capabilities that kubelet is to set the group of files.
    set_group: Vec<&'static str>,
    unsupported: Mutex<Vec<String>>,
}

impl<'a, H: AnyHost> Kubelet<'a, H> {
    /// Starts kubelet, which probes the plug-in directory.
    pub fn start(host: &'a H) -> Result<Self> {
        let names = host.sh(&format!("ls {PLUGINS}"))?.ok()?.text();
        ensure!(
            names == format!("{NO_FSGROUP}\n{DRIVER}"),
            "drivers: {names}"
        );
        let mut kubelet = Self {
            host,
            set_group: Vec::new(),
            unsupported: Mutex::default(),
        };
        for driver in [DRIVER, NO_FSGROUP] {
            let reply = kubelet.call_driver(driver, &["init"])?;
            // A capability that the driver leaves out is true.
            if reply["capabilities"]["fsGroup"] != false {
                kubelet.set_group.push(driver);
            }
        }
        Ok(kubelet)
    }

    /// Calls the driver `spc/spc`.
    pub fn call(&self, words: &[&str]) -> Result<Value> {
        self.call_driver(DRIVER, words)
    }

    /// Calls a driver as `driver-call.go` does: stdout and stderr are one pipe, read to its end,
    /// with one object.
    fn call_driver(&self, driver: &str, words: &[&str]) -> Result<Value> {
        let call = words.first().copied().unwrap_or_default();
        let mut unsupported = self
            .unsupported
            .lock()
            .map_err(|_| anyhow::anyhow!("a panic"))?;
        if unsupported.iter().any(|known| known == call) {
            bail!("Not supported");
        }
        let driver = path(driver);
        // kubelet takes the driver's exit code, and waits until every process has closed the pipe.
        let script = r#"{ "$@" 7>&1; echo "exit $?" >&3; } 3>&2 2>&1 | cat"#;
        let shell = ["sh", "-c", script, "kubelet", driver.as_str()];
        let output = self.host.run(&[&shell, words].concat())?;
        ensure!(output.success(), "{output}");
        ensure!(output.error_text() == "exit 0", "{output}");
        let text = output.text();
        let reply: Value = serde_json::from_str(&text)
            .with_context(|| format!("not one JSON object: {text:?}"))?;
        match reply["status"].as_str() {
            Some("Success") => Ok(reply),
            Some("Not supported") => {
                unsupported.push(call.to_owned());
                bail!("Not supported")
            }
            _ => bail!(
                "{call} command failed, reason: {}",
                reply["message"].as_str().unwrap_or_default()
            ),
        }
    }

    /// Options from `NewOptionsForDriver`, with those that `SetUpAt` adds.
    pub fn options(&self, pod: &Pod) -> String {
        let mut all = Map::new();
        let mut own = |key: &str, value: &str| {
            all.insert(format!("kubernetes.io/{key}"), value.into());
        };
        own("fsType", &pod.volume.fs_type);
        own("readwrite", if pod.volume.read_only { "ro" } else { "rw" });
        own("pvOrVolumeName", "data");
        own("pod.name", &format!("pod-{}", pod.uid));
        own("pod.namespace", "default");
        own("pod.uid", &pod.uid);
        own("serviceAccount.name", "default");
        if let Some(group) = pod.fs_group {
            own("mounterArgs.FsGroup", &group.to_string());
        }
        for (key, value) in &pod.volume.secret {
            own(&format!("secret/{key}"), &base64(value.as_bytes()));
        }
        for (key, value) in &pod.volume.options {
            all.insert(key.clone(), value.as_str().into());
        }
        Value::Object(all).to_string()
    }

    /// Plays `prepareForMount`: creates the directory, and returns whether it is a mount point.
    fn prepare(&self, directory: &str) -> Result<bool> {
        let script = r#"
            if ! [ -e "$1" ]; then mkdir -p -m 0750 "$1" && echo new; exit; fi
            [ "$(stat -c %d "$1")" = "$(stat -c %d "${1%/*}")" ] && echo there || echo mounted"#;
        let command = ["sh", "-c", script, "prepare", directory];
        Ok(self.host.run(&command)?.ok()?.text() == "mounted")
    }

    /// Plays `SetUpAt`.
    pub fn set_up(&self, pod: &Pod) -> Result<()> {
        let directory = pod.directory();
        // kubelet calls GetVolumeName and ignores the reply.
        self.call_driver(pod.driver, &["getvolumename", &self.options(pod)])?;
        if self.prepare(&directory)? {
            return Ok(());
        }
        if let Err(error) = self.call_driver(pod.driver, &["mount", &directory, &self.options(pod)])
        {
            self.host.run(&["rmdir", &directory])?;
            return Err(error);
        }
        let group = pod
            .fs_group
            .filter(|_| self.set_group.contains(&pod.driver));
        if let Some(group) = group.filter(|_| !pod.volume.read_only) {
            // kubelet ignores failures of SetVolumeOwnership.
            let script = r#"find "$1" -exec chgrp -h "$2" {} + ; find "$1" -type d -exec chmod g+rwxs {} + ; find "$1" -type f -exec chmod g+rw {} +"#;
            let own = ["sh", "-c", script, "own", &directory, &group.to_string()];
            self.host.run(&own)?;
        }
        Ok(())
    }

    /// Plays `TearDownAt`, and removes directories that are empty then.
    pub fn tear_down(&self, pod: &Pod) -> Result<()> {
        let directory = pod.directory();
        let there = [
            "sh",
            "-c",
            // busybox's ls does not list entries that it cannot stat.
            r#"stat "$1" || [ "$(echo "${1%/*}"/*)" != "${1%/*}/*" ]"#,
            "there",
            &directory,
        ];
        if !self.host.run(&there)?.success() {
            return Ok(());
        }
        self.call_driver(pod.driver, &["unmount", &directory])?;
        // The driver may have removed the directory. A directory that cannot be read counts as
        // present, and kubelet tries again.
        let remove = r#"[ "$(echo "${1%/*}"/*)" = "${1%/*}/*" ] || rmdir "$1""#;
        self.host
            .run(&["sh", "-c", remove, "remove", &directory])?
            .ok()?;
        Ok(())
    }
}

/// Standard base64, as encoding/json writes bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = [
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            if place <= chunk.len() {
                let digit = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}
