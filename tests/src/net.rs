//! The lab's network: a bridge and a cable to each host, with documentation addresses and no route
//! to other networks.

use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::process::Command;

/// Number of hosts that the network has addresses for.
pub const HOSTS: u8 = 240;

/// Returns the name of a host.
pub fn name(host: u8) -> String {
    format!("host-{host}")
}

/// Returns the address of a host, from a network for documentation (RFC 5737).
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

/// Lays a cable (veth) from the bridge to the network namespace of a process. Both ends end with
/// that namespace.
pub fn attach(host: u8, pid: u32) -> Result<()> {
    // A path, because the caller's children have other numbers in another PID namespace.
    let (cable, netns) = (format!("host{host}"), format!("/proc/{pid}/ns/net"));
    ip(&[
        "link", "add", &cable, "master", "br0", "up", "type", "veth", "peer", "name", "eth0",
        "netns", &netns,
    ])
}

/// Makes a tap interface for a virtual machine on the bridge, in the lab's network namespace.
pub fn plug(cable: &str) -> Result<()> {
    ip(&["tuntap", "add", cable, "mode", "tap"])?;
    ip(&["link", "set", cable, "master", "br0", "up"])
}

/// Sets the host's address, in its own network namespace.
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
