//! Cleans up after killed commands and after mounts that no longer exist.

pub mod client_upkeep;
pub mod ended_pods;
pub mod leftovers;
pub mod records;
pub mod repairs;
pub mod services;
