//! The launcher: plans a mount, runs its helper, proves the result from the host's side, records
//! it, and looks after it until it is unmounted.
#![deny(unsafe_code)]

pub mod block;
pub mod client;
pub mod daemon;
pub mod error;
pub mod frontends;
pub mod helper;
pub mod host;
pub mod install;
pub mod kinds;
pub mod liveness;
pub mod log;
pub mod mount;
pub mod options;
pub mod process;
pub mod recovery;
pub mod repair;
pub mod servers;
pub mod state;
pub mod sys;
pub mod unmount;
