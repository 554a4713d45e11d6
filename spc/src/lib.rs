//! The launcher: plans a mount, runs its helper, proves the result from the host's side, records
//! it, and looks after it until it is unmounted.
#![deny(unsafe_code)]

pub mod client;
pub mod doors;
pub mod error;
pub mod events;
pub mod health;
pub mod host;
pub mod install;
pub mod kinds;
pub mod liveness;
pub mod log;
pub mod mount;
pub mod options;
pub mod state;
pub mod sys;
