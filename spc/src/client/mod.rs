//! Where the client programs run when a mount has to outlive the container: in a *client root*, a tree on the host with
//! the programs of the container's image, and in a mount namespace of its own that all mounts of that tree share.
//!
//! - [`root`]: the trees, a directory for each version, `/var/lib/spc/roots/ID`.
//! - [`namespace`]: the client namespace of a tree, and the process that keeps it, the [`keeper`].
//! - [`enter`]: running a program of a tree in its namespace.
//! - [`scope`]: a cgroup of its own on the host for what such a program leaves running.
//! - [`tend`]: looking after what such a namespace has besides daemons.

pub mod enter;
mod image;
pub mod keeper;
pub mod namespace;
pub mod root;
pub mod scope;
pub mod tend;

use std::path::Path;

/// In a client root: the file that holds its name.
pub const NAME_FILE: &str = "/spc/client";

/// Where this process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a client namespace, whose root has this name.
    Client(String),
    /// In a container of the image.
    Container,
    /// On the host itself, which has no client programs.
    Host,
}

/// Where this process runs. The image has a directory that no host has.
pub fn place() -> Place {
    match std::fs::read_to_string(NAME_FILE) {
        Ok(name) => Place::Client(name),
        Err(_) if Path::new("/spc").is_dir() => Place::Container,
        Err(_) => Place::Host,
    }
}
