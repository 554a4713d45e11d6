//! `start-statd`, the program by which mount.nfs(8) starts rpc.statd.
//!
//! mount.nfs runs it with no arguments and an empty environment, when a mount of NFS version 3 needs
//! rpc.statd for its locks and none is running.

use std::process::ExitCode;

use crate::host::service;
use crate::kinds::nfs;
use crate::log;

/// Starts rpcbind and rpc.statd, if they are not running yet.
pub fn main() -> ExitCode {
    for shared in &nfs::SERVICES {
        if let Err(error) = service::ensure(&shared.service) {
            log::error(&format!("spc: {error}"));
            return ExitCode::from(error.class().exit_code());
        }
    }
    ExitCode::SUCCESS
}
