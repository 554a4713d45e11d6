//! The launcher, as a library behind the `spc` executable.
//!
//! spc plans a mount, runs its helper, verifies the result in the host's mount namespace, records
//! the mount, and maintains it until it is unmounted. ARCHITECTURE.md describes the rooms below and
//! which of them may import which.
#![deny(unsafe_code)]

pub mod block;
pub mod client;
pub mod daemon;
pub mod doctor;
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
pub mod provision;
pub mod recovery;
pub mod repair;
pub mod servers;
pub mod state;
pub mod sys;
pub mod unmount;
pub mod volume;
