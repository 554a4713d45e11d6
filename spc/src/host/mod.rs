//! Access to the host: its mount namespace, mount table, cgroups, disks, kernel modules and
//! services.

pub mod accounts;
pub mod caller;
pub mod cgroup;
mod cgroup_v1;
pub mod confinement;
pub mod disk;
pub mod file_lock;
pub mod hash;
pub mod hostname;
pub mod modules;
pub mod mount_id;
pub mod mountinfo;
pub mod namespace;
pub mod propagated;
pub mod ranges;
pub mod redirect;
pub mod rpc;
pub mod runs_in;
pub mod service;
pub mod settings;
pub mod target;
pub mod unmount;

pub use namespace::Host;
pub use redirect::{Mode, Redirect};
pub use settings::Settings;
