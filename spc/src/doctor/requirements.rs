//! `spc doctor --kind`: checks container and host for one kind of file system.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::thread::CapabilitySet;

use crate::doctor::check::{Check, check};
use crate::doctor::node::Node;
use crate::error::{Error, Result};
use crate::host::namespace::shares_network;
use crate::host::{Host, Settings, confinement, modules};
use crate::kinds::model::Need;
use crate::kinds::needs::Needs;

/// Checks everything that a kind needs. A failure does not stop the others.
pub fn examine(needs: &Needs) -> Vec<Check> {
    let host = Settings::read().and_then(Host::open).ok();
    let mut checks: Vec<Check> = Vec::new();
    let mut add = |name: &str, result| {
        checks.push(check(&format!("{} {name}", needs.kind), result));
    };
    let node = Node::open();
    for part in needs.parts {
        match (*part, &node) {
            (Need::Program { names, package }, _) => {
                add("program", program(names, &needs.program, package));
            }
            (Need::Fuse, Some(node)) => add("device", node.fuse()),
            // The programs run on the node, with its network and devices.
            (_, Some(_)) => {}
            (Need::Fuse, None) => add(
                "device",
                confinement::open_fuse().map(|()| "/dev/fuse opens".into()),
            ),
            (Need::Capabilities(names), None) => add("capabilities", capabilities(names)),
            (Need::HostNetwork, None) => add("network", network(host.as_ref().map(Host::settings))),
            (Need::WritableSys, None) => add("/sys", writable_sys()),
            (Need::HostDevices, None) => add("/dev", devices(host.as_ref())),
        }
    }
    for module in needs.modules {
        let found = match &host {
            Some(host) => modules::check(*module, host),
            None => Err(no_host()),
        };
        add("module", found);
    }
    checks
}

fn no_host() -> Error {
    Error::system("the host cannot be inspected").hint("see the check named host")
}

fn program(names: &[&str], word: &str, package: &str) -> Result<String> {
    let names: Vec<String> = names.iter().map(|name| name.replace("{}", word)).collect();
    let package = package.replace("{}", word);
    match confinement::find_program(&names) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(
            Error::system(format!("this container has no {}", names.join(" and no "))).hint(
                format!("install it in the image: apt-get install {package}"),
            ),
        ),
    }
}

fn capabilities(names: &[&str]) -> Result<String> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|e| Error::system("cannot read the capabilities").because(e))?;
    let has =
        |name: &str| CapabilitySet::from_name(name).is_some_and(|bit| sets.effective.contains(bit));
    let missing: Vec<&str> = names.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Ok(names.join(", "));
    }
    let options: Vec<_> = missing
        .iter()
        .map(|name| format!("--cap-add={name}"))
        .collect();
    Err(Error::system(format!("missing: {}", missing.join(", ")))
        .hint(format!("start the container with {}", options.join(" "))))
}

fn network(settings: Option<&Settings>) -> Result<String> {
    match settings.and_then(shares_network) {
        Some(true) => Ok("the host's".into()),
        _ => Err(
            Error::system("the container's network is not known to be the host's")
                .hint("start it with --net=host; otherwise the kernel's mounts of this kind end with the container"),
        ),
    }
}

fn writable_sys() -> Result<String> {
    let access = rustix::fs::access("/sys/bus", rustix::fs::Access::WRITE_OK);
    access.map(|()| "writable".into()).map_err(|e| {
        Error::system("cannot write to /sys")
            .because(e)
            .hint("start the container with --privileged, or with -v /sys:/sys")
    })
}

fn devices(host: Option<&Host>) -> Result<String> {
    let number = || fs::metadata("/dev").map(|dev| dev.dev());
    let hosts = host.ok_or_else(no_host)?.run("looking at /dev", number)?;
    match (hosts, number()) {
        (Ok(hosts), Ok(own)) if hosts == own => Ok("the host's".into()),
        _ => Err(Error::system(
            "the container has a /dev of its own, in which new devices do not appear",
        )
        .hint("start it with -v /dev:/dev")),
    }
}
