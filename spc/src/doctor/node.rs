//! Checks in a pod of the DaemonSet. The mounts of pods are made on the node, by the programs that
//! the pod installed there, so the pod itself needs neither the node's network nor devices.

use std::fs;
use std::path::Path;

use crate::client::root::{CURRENT, linked_id};
use crate::error::{Error, Result, place};
use crate::host::namespace::shares_namespace;
use crate::host::{Host, Settings};

/// Node that the pod of this process serves.
pub struct Node(Host);

impl Node {
    /// Returns the node, if this process is in a pod that can reach it.
    pub fn open() -> Option<Self> {
        if !place::is_pod() {
            return None;
        }
        let host = Host::open(Settings::read().ok()?).ok()?;
        (shares_namespace(host.settings(), "pid") == Some(true)).then_some(Self(host))
    }

    /// Returns the version of the installed programs.
    ///
    /// # Errors
    /// Nothing is installed on the node.
    pub fn installed(&self) -> Result<String> {
        let link = || linked_id(Path::new(CURRENT));
        self.0
            .run("looking for the installed programs", link)?
            .ok_or_else(|| {
                Error::system("spc is not installed on this node")
                    .because(format!("{CURRENT} is missing"))
                    .hint("run `spc install --flexvolume` in this pod")
            })
    }

    /// Checks that the node has `/dev/fuse`, or can have it once the module is loaded.
    ///
    /// # Errors
    /// The node has no such device.
    pub fn fuse(&self) -> Result<String> {
        let look = || fs::metadata("/dev/fuse").map(drop);
        let found = self.0.run("looking for /dev/fuse", look)?;
        found.map_err(|e| {
            Error::system("the node has no /dev/fuse")
                .because(e)
                .hint("on the node, try: modprobe fuse")
        })?;
        Ok("/dev/fuse of the node, where the daemons run".into())
    }
}
