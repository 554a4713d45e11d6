//! The lab's network: a bridge, a cable to each host, documentation addresses, nothing beyond.

use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::process::Command;

/// How many hosts fit on the network at once.
pub const HOSTS: u8 = 240;

/// The name of a host.
pub fn name(host: u8) -> String {
    format!("host-{host}")
}

/// The address of a host, from the network that is set apart for documentation.
pub fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + host)
}

/// Returns the MAC address of a virtual machine.
pub fn mac(host: u8) -> String {
    format!("52:54:00:00:02:{host:02x}")
}

/// Makes the bridge, in the lab's network namespace.
pub fn create_bridge() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", "br0", "type", "bridge"])?;
    ip(&["link", "set", "br0", "up"])
}

/// Lays a cable from the bridge to the network namespace of a process. Both ends go with that namespace.
pub fn attach(host: u8, pid: u32) -> Result<()> {
    // By path: the caller's children are numbered by another PID namespace.
    let (cable, netns) = (format!("host{host}"), format!("/proc/{pid}/ns/net"));
    ip(&[
        "link", "add", &cable, "master", "br0", "up", "type", "veth", "peer", "name", "eth0",
        "netns", &netns,
    ])
}

/// Lays a cable from the bridge to where a virtual machine will take hold of it, in the lab's network namespace.
pub fn plug(cable: &str) -> Result<()> {
    ip(&["tuntap", "add", cable, "mode", "tap"])?;
    ip(&["link", "set", cable, "master", "br0", "up"])
}

/// Gives the host its address, in its own network namespace.
pub fn configure(host: u8) -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    ip(&[
        "address",
        "add",
        &format!("{}/24", address(host)),
        "dev",
        "eth0",
    ])?;
    ip(&["link", "set", "eth0", "up"])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip")?;
    let words = arguments.join(" ");
    ensure!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
