//! Plays kubelet: its FlexVolume plug-in and its mounter, as its own code has them (kubernetes `pkg/volume/flexvolume`,
//! `pkg/volume/util`, and `mount-utils`): which calls in which order, with which arguments, and what is done with the
//! directories before and after. And tests of the mounter.

use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use lab::AnyHost;
use serde_json::{Map, Value, json};

use crate::support::{Container, Spc, VmSpc, with_gluster, with_lab};

/// kubelet's directory.
pub const ROOT: &str = "/var/lib/kubelet";

/// Where it looks for drivers.
const PLUGINS: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

/// The driver, `spc/spc` in a pod, as a directory's name has it.
const DRIVER: &str = "spc~spc";

/// What `spc install` does for the ways in, by hand.
pub fn install<H: AnyHost>(spc: &Container<H>) -> Result<()> {
    let lay = "spc mount -t fuse.bindfs -o x-mount.mkdir /host/srv /mnt/lay";
    spc.sh(lay)?.ok()?;
    let link = "ln -sfn roots/$(ls /var/lib/spc/roots) /var/lib/spc/current
        ln -sf current/usr/bin/spc /var/lib/spc/mounter";
    spc.host.sh(link)?.ok()?;
    spc.exec(&["spc", "umount", "/mnt/lay"])?.ok()?;
    let driver = format!(
        "mkdir -p {PLUGINS}/{DRIVER} && cd {PLUGINS}/{DRIVER} && cp /var/lib/spc/current/usr/bin/spc .spc && mv .spc spc"
    );
    spc.host.sh(&driver)?.ok().map(drop)
}

/// A volume of a pod, as a manifest has it.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub fs_type: String,
    pub options: Vec<(String, String)>,
    /// The data of the secret that `secretRef` names.
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
}

impl Pod {
    pub fn new(uid: &str, volume: Volume) -> Self {
        Self {
            uid: uid.to_owned(),
            volume,
            fs_group: None,
        }
    }

    /// Where the volume is mounted.
    pub fn directory(&self) -> String {
        format!("{ROOT}/pods/{}/volumes/{DRIVER}/data", self.uid)
    }
}

/// kubelet on a host, which has probed the driver.
pub struct Kubelet<'a, H> {
    host: &'a H,
    pub capabilities: Value,
    unsupported: Mutex<Vec<String>>,
}

impl<'a, H: AnyHost> Kubelet<'a, H> {
    /// Starts: the plug-in directory is probed.
    pub fn start(host: &'a H) -> Result<Self> {
        let names = host.sh(&format!("ls {PLUGINS}"))?.ok()?.text();
        ensure!(names == DRIVER, "drivers: {names}");
        let mut kubelet = Self {
            host,
            capabilities: Value::Null,
            unsupported: Mutex::default(),
        };
        let reply = kubelet.call(&["init"])?;
        // What is not said is taken for given.
        let mut capabilities = json!({"attach": true, "selinuxRelabel": true, "supportsMetrics": false,
            "fsGroup": true, "requiresFSResize": true});
        if let Some(said) = reply["capabilities"].as_object() {
            for (key, value) in said {
                capabilities[key] = value.clone();
            }
        }
        kubelet.capabilities = capabilities;
        Ok(kubelet)
    }

    /// `driver-call.go`: stdout and stderr are one pipe, read to its end, and hold one object.
    pub fn call(&self, words: &[&str]) -> Result<Value> {
        let call = words.first().copied().unwrap_or_default();
        let mut unsupported = self
            .unsupported
            .lock()
            .map_err(|_| anyhow::anyhow!("a panic"))?;
        if unsupported.iter().any(|known| known == call) {
            bail!("Not supported");
        }
        let driver = format!("{PLUGINS}/{DRIVER}/spc");
        // Kubelet sees how the driver ends, and waits until nobody can write to the pipe any more.
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

    /// `NewOptionsForDriver`, and what `SetUpAt` adds.
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

    /// `prepareForMount`: whether something is mounted there; the directory is made.
    fn prepare(&self, directory: &str) -> Result<bool> {
        let script = r#"
            if ! [ -e "$1" ]; then mkdir -p -m 0750 "$1" && echo new; exit; fi
            [ "$(stat -c %d "$1")" = "$(stat -c %d "${1%/*}")" ] && echo there || echo mounted"#;
        let look = ["sh", "-c", script, "prepare", directory];
        Ok(self.host.run(&look)?.ok()?.text() == "mounted")
    }

    /// `SetUpAt`.
    pub fn set_up(&self, pod: &Pod) -> Result<()> {
        let directory = pod.directory();
        // GetVolumeName is asked, and its answer dropped.
        self.call(&["getvolumename", &self.options(pod)])?;
        if self.prepare(&directory)? {
            return Ok(());
        }
        if let Err(error) = self.call(&["mount", &directory, &self.options(pod)]) {
            self.host.run(&["rmdir", &directory])?;
            return Err(error);
        }
        let group = pod
            .fs_group
            .filter(|_| self.capabilities["fsGroup"] == true);
        if let Some(group) = group.filter(|_| !pod.volume.read_only) {
            // SetVolumeOwnership, whose failure is not looked at.
            let script = r#"find "$1" -exec chgrp -h "$2" {} + ; find "$1" -type d -exec chmod g+rwxs {} + ; find "$1" -type f -exec chmod g+rw {} +"#;
            let own = ["sh", "-c", script, "own", &directory, &group.to_string()];
            self.host.run(&own)?;
        }
        Ok(())
    }

    /// `TearDownAt`, and the removal of what is empty then.
    pub fn tear_down(&self, pod: &Pod) -> Result<()> {
        let directory = pod.directory();
        let there = [
            "sh",
            "-c",
            r#"stat "$1" || ls "${1%/*}" | grep -qx "${1##*/}""#,
            "there",
            &directory,
        ];
        if !self.host.run(&there)?.success() {
            return Ok(());
        }
        self.call(&["unmount", &directory])?;
        let remove = r#"[ ! -e "$1" ] || rmdir "$1""#;
        self.host
            .run(&["sh", "-c", remove, "remove", &directory])?
            .ok()?;
        Ok(())
    }
}

/// Standard base64, as encoding/json has it for bytes.
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

/// A directory of a pod for a volume of one of kubelet's own plug-ins.
fn own_directory(plugin: &str, pod: &str) -> String {
    format!("{ROOT}/pods/{pod}/volumes/kubernetes.io~{plugin}/data")
}

/// kubelet's `doMount` with a mounter: its output is what the pod's event shows.
fn mounter<H: AnyHost>(host: &H, words: &[&str]) -> Result<lab::Output> {
    let script = r#""$@" 2>&1 | cat; "#;
    let shell = [
        "sh",
        "-o",
        "pipefail",
        "-c",
        script,
        "kubelet",
        "/var/lib/spc/mounter",
        "mount",
    ];
    host.run(&[&shell, words].concat())
}

#[test]
fn the_mounter_mounts_what_kubelets_glusterfs_asks_for() {
    with_gluster(|lab, cluster| {
        let spc = Spc::usual(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let target = own_directory("glusterfs", "1-2");
        let logs = format!("{ROOT}/plugins/kubernetes.io/glusterfs/data");
        host.sh(&format!("mkdir -p -m 0750 {target} {logs}"))?
            .ok()?;
        let [first, second] = [0, 1].map(|node| cluster.nodes()[node].host().address().to_string());
        let options = format!(
            "auto_unmount,backup-volfile-servers={second}:{first},log-file={logs}/pod-glusterfs.log,log-level=ERROR"
        );
        let words = [
            "-t",
            "glusterfs",
            "-o",
            &options,
            &format!("{first}:vol"),
            &target,
        ];
        for _ in 0..2 {
            mounter(host, &words)?.ok()?;
        }
        ensure!(spc.on(&target)?.len() == 1 && spc.on(&target)?[0].fstype == "fuse.glusterfs");
        host.write(format!("{target}/from-a-pod"), b"written")?;
        let copy = cluster.nodes()[0]
            .host()
            .read(cluster.nodes()[0].brick("vol").join("from-a-pod"))?;
        ensure!(copy == b"written");
        // What kubelet does when the pod ends, and nothing else.
        host.run(&["umount", &target])?.ok()?;
        crate::support::until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))?;

        // What went wrong is in the output, and where kubelet looks for it.
        let words = [
            "-t",
            "glusterfs",
            "-o",
            &options,
            &format!("{first}:nosuch"),
            &target,
        ];
        let failed = mounter(host, &words)?;
        ensure!(
            !failed.success() && failed.text().contains("failed to fetch volume file"),
            "{failed}"
        );
        let log = host.read(format!("{logs}/pod-glusterfs.log"))?;
        let log = String::from_utf8_lossy(&log);
        ensure!(log.contains("failed to fetch volume file"), "{log}");
        spc.is_clean()
    });
}

#[test]
fn no_link_below_kubelets_directory_is_followed() {
    with_gluster(|lab, cluster| {
        let spc = Spc::usual(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let target = own_directory("glusterfs", "1-2");
        // Made by root, and so good enough anywhere else.
        host.sh(&format!(
            "mkdir -p {} /srv/elsewhere && ln -s /srv/elsewhere {target}",
            target.trim_end_matches("/data")
        ))?
        .ok()?;
        let refused = mounter(host, &["-t", "glusterfs", &source, &target])?;
        ensure!(
            refused.text().contains("symbolic link") && !refused.success(),
            "{refused}"
        );
        let kubelet = Kubelet::start(host)?;
        let pod = Pod::new("3-4", Volume::new("glusterfs", &[("source", &source)]));
        host.sh(&format!("mkdir -p {ROOT}/pods/3-4/volumes && ln -s /srv/elsewhere {ROOT}/pods/3-4/volumes/{DRIVER} && mkdir /srv/elsewhere/data"))?.ok()?;
        let error = kubelet.call(&["mount", &pod.directory(), &kubelet.options(&pod)]);
        ensure!(error.is_err_and(|error| error.to_string().contains("symbolic link")));
        ensure!(spc.on("/srv/elsewhere")?.is_empty() && spc.on("/srv/elsewhere/data")?.is_empty());
        // kubelet's own directory may be anywhere.
        host.sh(&format!(
            "mv {ROOT} /srv/kubelet && ln -s /srv/kubelet {ROOT} && rm {target} && mkdir {target}"
        ))?
        .ok()?;
        mounter(host, &["-t", "glusterfs", &source, &target])?.ok()?;
        ensure!(spc.on(target.replace(ROOT, "/srv/kubelet"))?.len() == 1);
        host.run(&["umount", &target])?.ok()?;
        crate::support::until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))
    });
}

#[test]
fn the_mounter_takes_care_of_statd() {
    with_lab(|lab| {
        let spc = VmSpc::usual(lab)?;
        install(&spc)?;
        let server = lab::knfsd().context("no server")?;
        let source = format!("{}:/data", server.vm().address());
        let target = own_directory("nfs", "1-2");
        spc.host.sh(&format!("mkdir -p -m 0750 {target}"))?.ok()?;
        crate::services::ensure_running(&spc, &[])?;
        for options in ["hard,nfsvers=3", "hard,nfsvers=4.1,ro"] {
            mounter(&spc.host, &["-t", "nfs", "-o", options, &source, &target])?.ok()?;
            ensure!(spc.host.read(format!("{target}/file"))? == b"served\n");
            if options.contains("=3") {
                crate::services::ensure_running(&spc, &crate::services::BOTH)?;
            }
            spc.host.run(&["umount", &target])?.ok()?;
            crate::support::until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))?;
        }
        crate::services::until_running(&spc, &[])
    });
}
