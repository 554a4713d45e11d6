//! Whether a mount, or the path to it, answers; found without ever waiting for it.

pub mod path;
pub mod probe;
pub mod waiter_lock;
