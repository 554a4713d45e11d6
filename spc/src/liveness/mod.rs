//! Probes whether a mount, or the path to it, responds. The caller itself never blocks on it.

pub mod health;
pub mod message;
pub mod path;
pub mod probe;
pub mod waiter_lock;
