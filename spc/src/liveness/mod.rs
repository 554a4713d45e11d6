//! Whether a mount, or the path to it, answers; found without ever waiting for it.

pub mod lone;
pub mod look;
pub mod way;
