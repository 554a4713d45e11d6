//! Volumes of Kubernetes: what kubelet's volumes are, who may have them, and the worker processes
//! that mount them. The frontends for kubelet share this room.

pub mod allowlist;
pub mod expand;
pub mod paths;
pub mod policy;
mod spec;
pub mod unmount;
pub mod worker;

pub use spec::{Author, Spec, Volume};
