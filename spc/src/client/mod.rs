//! Where the client programs run when a mount has to outlive the container: in a *client root*, a tree on the host with
//! the programs of the container's image, and in a mount namespace of its own that all mounts of that tree share.
//!
//! - [`root`]: the trees, a directory for each version, `/var/lib/spc/roots/ID`.
//! - [`namespace`]: the client namespace of a tree, and the process that keeps it, the [`keeper`].
//! - [`enter`]: running a program of a tree in its namespace.
//!
//! What such a program leaves running gets a cgroup of its own, `host/scope.rs`; `mount/tend.rs` looks after the rest.

pub mod enter;
mod image;
pub mod namespace;
pub mod namespace_holder;
pub mod root;
