//! `spc install` and `spc uninstall`: what they leave on hosts of all sorts, and what they take away again.

use anyhow::{Result, ensure};
use lab::{Base, Engine, Lab, Propagation};
use serde_json::Value;

use crate::support::{LEAST, Spc, with_lab};

/// Everything on the host's own file systems, with what links lead to. Not what belongs to one boot, and not what the
/// engine has there.
const LISTING: &str = "find / -xdev \\( -path /run -o -path /tmp -o -path /var/lib/docker -o -path /etc/docker -o -path /root \\) \
    -prune -o -exec stat -c '%N %F %a' {} + | sort";

fn listing(spc: &Spc<'_>) -> Result<String> {
    Ok(spc.host.sh(LISTING)?.ok()?.text())
}

/// `spc install` in the container, as JSON.
fn install(spc: &Spc<'_>, arguments: &[&str]) -> Result<Value> {
    let words = [&["spc", "install", "--json"], arguments].concat();
    Ok(serde_json::from_slice(&spc.exec(&words)?.ok()?.stdout)?)
}

/// A host with mount(8) as most hosts have it, and the container.
fn with_util_linux(lab: &Lab, arguments: &[&str]) -> Result<Spc<'static>> {
    let lab: &'static Lab = unsafe_free(lab);
    let spc = Spc::start(lab, Propagation::Shared, Engine::Docker, Base::Trixie, arguments)?;
    spc.host
        .sh("ln -sf ../libexec/util-linux/mount ../libexec/util-linux/umount /usr/bin/")?
        .ok()?;
    Ok(spc)
}
