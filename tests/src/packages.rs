//! Debian packages that the lab needs on the machine.

use anyhow::{Result, ensure};
use std::ffi::OsStr;
use std::path::Path;

use crate::machine;

/// Programs that the lab runs, and their packages.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/crun", "crun"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/bin/g++", "g++"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/mksquashfs", "squashfs-tools"),
    ("/usr/bin/musl-gcc", "musl-tools"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/pip3", "python3-pip"),
    ("/usr/bin/podman", "podman"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/sbin/depmod", "kmod"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/losetup", "mount"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/sbin/mkfs.xfs", "xfsprogs"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/sfdisk", "fdisk"),
];

/// Programs that only `lab bench` runs.
const BENCH: &[(&str, &str)] = &[("/usr/bin/fio", "fio"), ("/usr/bin/git", "git")];

/// Returns the missing packages.
fn missing() -> Vec<&'static str> {
    missing_of(PROGRAMS)
}

fn missing_of(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs
        .iter()
        .filter(|(path, _)| !Path::new(path).exists())
        .map(|(_, package)| *package)
        .collect()
}

/// `lab setup`: installs the missing packages.
pub fn setup() -> Result<()> {
    install(&missing())
}

/// Installs the missing packages of `lab bench`.
pub fn bench() -> Result<()> {
    install(&missing_of(BENCH))
}

fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        eprintln!("lab: every package is installed");
        return Ok(());
    }
    ensure!(
        is_root(),
        "cannot install packages: not root\nhint: {}",
        hint(missing)
    );
    eprintln!("lab: installing {}", missing.join(" "));
    let environment = |arguments: &[&str]| {
        let words: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        machine::run("env", &words)
    };
    environment(&["apt-get", "update", "-q"])?;
    let install = [
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-qy",
        "--no-install-recommends",
    ];
    environment(&[&install, missing].concat())
}

/// Returns whether a lab can be made here. If not, prints the reason; with `CI=true`, panics.
pub fn require() -> bool {
    let missing = missing();
    let reason = if !is_root() {
        "the lab needs root\nhint: run the tests as root".to_owned()
    } else if !missing.is_empty() {
        format!("missing: {}\nhint: {}", missing.join(" "), hint(&missing))
    } else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "a skip is a failure in CI: {reason}"
    );
    let thread = std::thread::current();
    eprintln!("SKIPPED {}: {reason}", thread.name().unwrap_or("a test"));
    false
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn hint(missing: &[&str]) -> String {
    format!(
        "apt-get install --no-install-recommends {}",
        missing.join(" ")
    )
}
