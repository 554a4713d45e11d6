//! The container on a virtual machine, whose only container runtime is runc. The configuration is
//! what an engine makes of `run --privileged --net=host --pid=host -v /dev:/dev IMAGE`.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde_json::{Value, json};

use crate::runtime::CAPABILITIES;
use crate::vm::Vm;

/// Configuration of the container.
const CONFIG: &str = "/run/container/config.json";

/// What runc knows of the container while it exists.
pub const STATE: &str = "/run/runc/spc/state.json";

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
        self.write(CONFIG, &config)?;
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

/// Does in the machine what `runc exec [--cwd DIRECTORY] spc WORDS` does, in a tenth of its time:
/// the calling thread enters the container, and the returned command joins its cgroup.
///
/// Returns `None` for other commands, and where there is more to do than that: for containers that
/// do not exist, run with other privileges, in cgroups of version 1, or are confined by SELinux.
pub(crate) fn enter(words: &[&str]) -> Result<Option<Command>> {
    let (directory, program, arguments) = match *words {
        [
            "runc",
            "exec",
            "--cwd",
            directory,
            "spc",
            program,
            ref rest @ ..,
        ] => (directory, program, rest),
        ["runc", "exec", "spc", program, ref rest @ ..] => ("/", program, rest),
        _ => return Ok(None),
    };
    let read = |file| -> Option<Value> { serde_json::from_slice(&fs::read(file).ok()?).ok() };
    let expected = config("");
    let (Some(state), Some(found)) = (read(STATE), read(CONFIG)) else {
        return Ok(None);
    };
    let is_plain = ["/process", "/linux/namespaces", "/linux/seccomp"]
        .iter()
        .all(|part| found.pointer(part) == expected.pointer(part));
    if !is_plain || Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(None);
    }
    let pid = state["init_process_pid"]
        .as_i64()
        .and_then(|pid| pid.try_into().ok());
    let pid = pid
        .and_then(Pid::from_raw)
        .context("runc names no process")?;
    let Ok(init) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(None);
    };
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid()))?;
    // With version 1, there are several.
    let Some(cgroup) = cgroups.trim_end().strip_prefix("0::") else {
        return Ok(None);
    };
    let mut cgroup = File::options()
        .write(true)
        .open(format!("/sys/fs/cgroup{cgroup}/cgroup.procs"))?;

    // Threads share root and working directory until one of them unshares them.
    unshare(CloneFlags::CLONE_FS)?;
    let kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    move_into_thread_name_spaces(init.as_fd(), kinds).context("cannot enter the container")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir(directory);
    let environment = expected["process"]["env"].as_array().into_iter().flatten();
    for variable in environment.filter_map(Value::as_str) {
        let (name, value) = variable
            .split_once('=')
            .context("a variable without a value")?;
        command.env(name, value);
    }
    // SAFETY: The closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(move || cgroup.write_all(b"0")) };
    Ok(Some(command))
}
