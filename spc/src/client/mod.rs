//! Client root file systems and client namespaces, in which client programs run that have to
//! outlive the container.
//!
//! A *client root file system* is a directory on the host with the programs of the container's
//! image. All mounts made from the same client root share one mount namespace, the *client
//! namespace*.
//!
//! - [`root`]: the client roots, one directory for each version, `/var/lib/spc/roots/ID`.
//! - [`namespace`]: the client namespace of a client root.
//! - [`namespace_holder`]: the process that creates a client namespace and keeps it alive.
//! - [`enter`]: runs the `spc` of a client root in its namespace.
//!
//! A daemon gets a cgroup of its own (`host/cgroup.rs`). `recovery/client_upkeep.rs` reconciles
//! services and disks of client namespaces.

pub mod enter;
mod image;
pub mod namespace;
pub mod namespace_holder;
pub mod root;
