//! Cleans up after commands that were killed, and after mounts that ended.

pub mod client_upkeep;
pub mod leftovers;
pub mod records;
pub mod repairs;
pub mod services;
