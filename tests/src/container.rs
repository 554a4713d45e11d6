//! The container on a virtual machine, whose only container runtime is runc. The configuration is
//! what an engine makes of `run --privileged --net=host --pid=host -v /dev:/dev IMAGE`.

use anyhow::Result;
use serde_json::{Value, json};

use crate::runtime::CAPABILITIES;
use crate::vm::Vm;

impl Vm<'_> {
    /// Starts the container `spc`, with its log in `/run/container/log`.
    pub fn start_container(&self) -> Result<()> {
        self.start_changed(|_| {})
    }

    /// Starts the container with a changed configuration (OCI runtime specification).
    pub fn start_changed(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut config = config(&self.name());
        change(&mut config);
        let config = serde_json::to_vec_pretty(&config)?;
        self.write("/run/container/config.json", &config)?;
        let start = "runc run --detach --bundle /run/container spc >/run/container/log 2>&1";
        let started = self.sh(&format!(
            "{start} || {{ cat /run/container/log >&2; exit 1; }}"
        ))?;
        started.ok().map(drop)
    }
}

/// Returns the bundle's configuration (OCI runtime specification). On the host's network, engines
/// set the host's name; NFS servers identify clients by it.
fn config(host: &str) -> Value {
    let bind = |path: &str, options: &[&str]| json!({"destination": path, "source": path, "type": "bind", "options": options});
    let all = json!(CAPABILITIES.as_slice());
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": host,
        "process": {
            "args": ["spc", "serve"],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": all, "effective": all, "permitted": all},
        },
        "mounts": [
            {"destination": "/proc", "source": "proc", "type": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "source": "sysfs", "type": "sysfs", "options": ["nosuid", "noexec", "nodev"]},
            bind("/dev", &["rbind", "rprivate"]),
            bind("/etc/hosts", &["bind", "rprivate"]),
            bind("/etc/resolv.conf", &["bind", "rprivate"]),
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "rootfsPropagation": "rprivate",
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        },
    })
}
