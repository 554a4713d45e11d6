//! `start-statd`: what mount.nfs runs, with no arguments and an empty environment, when it makes a mount whose locks need
//! rpc.statd and finds none.

use std::process::ExitCode;

use crate::host::service;
use crate::kinds::nfs;
use crate::log;

/// Makes sure that rpcbind and rpc.statd run.
pub fn main() -> ExitCode {
    for shared in &nfs::SERVICES {
        if let Err(error) = service::ensure(&shared.service) {
            log::error(&format!("spc: {error}"));
            return ExitCode::from(error.class().exit_code());
        }
    }
    ExitCode::SUCCESS
}
