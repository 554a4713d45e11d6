//! Repair of dead mounts, and mounts that outlive their container.

mod client_namespace;
pub mod container_restart;
pub mod dead_daemons;
