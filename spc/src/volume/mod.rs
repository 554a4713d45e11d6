//! Volumes of Kubernetes: descriptions, rules for their authors, and worker processes. The
//! frontends for kubelet share this room.

pub mod allowlist;
pub mod expand;
pub mod paths;
pub mod policy;
mod spec;
pub mod unmount;
pub mod worker;

pub use spec::{Author, Spec, Volume};
