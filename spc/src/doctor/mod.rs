//! `spc doctor`: checks whether container and host have what spc needs.

pub mod check;
mod node;
pub mod requirements;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::doctor::check::{Check, check, copy};
use crate::doctor::node::Node;
use crate::error::{Error, Result};
use crate::host::namespace::{self, shares_network};
use crate::host::{Host, Settings, cgroup, confinement};
use crate::kinds::needs::Needs;
use crate::mount::helper_run::SHIM;

/// Oldest Linux version with every system call that spc uses; mount_setattr(2) is the newest.
const KERNEL: (u32, u32) = (5, 12);

/// Runs the general checks, and those for `kinds`. A failure does not stop the others.
pub fn examine(kinds: &[Needs]) -> Vec<Check> {
    let mut checks = general();
    if !kinds.is_empty() {
        // Kinds that need FUSE have a check of their own.
        checks.retain(|check| check.name != "fuse");
        checks.extend(kinds.iter().flat_map(requirements::examine));
    }
    checks
}

fn general() -> Vec<Check> {
    let settings = Settings::read();
    let redirects = settings
        .as_ref()
        .map(Settings::redirects)
        .unwrap_or_else(|_| "/spc/targets".into());
    let host = host();
    // Process 1 is the host's only where the host can be entered.
    let cgroup = host.is_ok().then(|| check("cgroup", cgroup::check()));
    let mut checks = vec![
        check("kernel", kernel()),
        check("capabilities", capabilities()),
        check(
            "settings",
            settings.as_ref().map(|_| "readable".into()).map_err(copy),
        ),
        check("host", host),
    ];
    let node = Node::open();
    if node.is_none() {
        checks.push(check("network", network(settings.as_ref().ok())));
    }
    checks.push(check("shim", shim()));
    if node.is_none() {
        checks.push(check("redirects", writable(&redirects)));
    }
    let fuse = match &node {
        Some(node) => node.fuse(),
        None => confinement::open_fuse().map(|()| "/dev/fuse opens".into()),
    };
    checks.push(check("fuse", fuse));
    checks.push(check("mtab", mtab()));
    checks.extend(cgroup);
    checks.extend(node.map(|node| check("installed", node.installed())));
    checks
}

fn kernel() -> Result<String> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL {
        Ok(release)
    } else {
        Err(
            Error::system(format!("Linux {release} is too old")).hint(format!(
                "spc needs Linux {}.{} or newer",
                KERNEL.0, KERNEL.1
            )),
        )
    }
}

fn capabilities() -> Result<String> {
    let missing = namespace::missing_capabilities()?;
    if missing.is_empty() {
        return Ok("all present".into());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let options: Vec<_> = names
        .iter()
        .map(|name| format!("--cap-add={name}"))
        .collect();
    Err(
        Error::system(format!("missing: {}", names.join(", "))).hint(format!(
            "start the container with --privileged, or {}",
            options.join(" ")
        )),
    )
}

fn host() -> Result<String> {
    let host = Host::open(Settings::read()?)?;
    Ok(format!("entered through {}", host.namespace().display()))
}

fn network(settings: Option<&Settings>) -> Result<String> {
    match settings.and_then(shares_network) {
        Some(true) => Ok("the host's".into()),
        Some(false) => Err(Error::system("the container has a network of its own")
            .hint("start it with --net=host; otherwise NFS, CephFS and SMB mounts end with the container")),
        None => {
            let denied = confinement::hint();
            let hint = denied.unwrap_or_else(|| "start the container with --net=host --pid=host".into());
            Err(Error::system("cannot tell whether the network is the host's").hint(hint))
        }
    }
}

fn shim() -> Result<String> {
    let preload = fs::read_to_string("/etc/ld.so.preload").unwrap_or_default();
    if !Path::new(SHIM).is_file() {
        return Err(Error::system(format!("{SHIM} is missing"))
            .hint("use the image of spc, or install the shim at this path"));
    }
    if !preload.split_ascii_whitespace().any(|line| line == SHIM) {
        return Err(
            Error::system(format!("/etc/ld.so.preload does not name {SHIM}")).hint(format!(
                "in the container, run: echo {SHIM} >>/etc/ld.so.preload"
            )),
        );
    }
    // spc itself is static, so the dynamic linker loads nothing into it.
    let read = Command::new("cat").arg("/proc/self/maps").output();
    let maps = read.map(|output| output.stdout).unwrap_or_default();
    if String::from_utf8_lossy(&maps).contains("libspc_shim.so") {
        Ok("loaded into every program".into())
    } else {
        Err(Error::system("the shim is not loaded into programs")
            .hint("`ldd /usr/bin/cat` in the container shows why"))
    }
}

fn writable(redirects: &Path) -> Result<String> {
    let probe = redirects.join("doctor");
    let result = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
    match result {
        Ok(()) => Ok(format!("{} is writable", redirects.display())),
        Err(error) => Err(
            Error::system(format!("cannot write {}", redirects.display()))
                .because(error)
                .hint("with a read-only container, add --tmpfs /spc/targets"),
        ),
    }
}

fn mtab() -> Result<String> {
    if fs::symlink_metadata("/etc/mtab").is_ok_and(|m| m.file_type().is_symlink()) {
        Ok("a symbolic link".into())
    } else {
        Err(Error::system("/etc/mtab is not a symbolic link")
            .hint("in the container, run: ln -sf ../proc/self/mounts /etc/mtab; otherwise helpers write into it"))
    }
}
