//! Repair of dead mounts, and mounts that outlive their container.

mod cgroup_v1;
mod client_namespace;
pub mod container_restart;
pub mod dead_daemons;
