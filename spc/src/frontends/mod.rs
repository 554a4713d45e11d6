//! Frontends: the interfaces of spc. Each parses its arguments into a request for the pipeline.
//!
//! [`main`] selects the frontend by the name under which the program was called (`argv[0]`).

use std::process::ExitCode;

use crate::error::Result;
use crate::frontends::argv0::Frontend;
use crate::frontends::common::enter_client_on_host;
use crate::frontends::kubelet::{flexvolume, mounter};
use crate::host::{caller, runs_in};
use crate::log;

pub mod argv0;
pub mod cli;
pub mod common;
pub mod csi;
pub mod kubelet;
pub mod mount_helper;
pub mod secret_args;
pub mod start_statd;

/// Runs the frontend that the program's name selects, and returns its exit code.
pub fn main() -> ExitCode {
    let frontend = Frontend::from_argv0(&std::env::args_os().next().unwrap_or_default());
    let name = frontend.name();
    if let Err(error) = prepare(&frontend) {
        if frontend == Frontend::FlexVolume {
            return flexvolume::refuse(error);
        }
        log::error(&format!("{name}: {error}"));
        return ExitCode::from(error.class().exit_code());
    }
    match frontend {
        Frontend::Cli => cli::main(),
        Frontend::Statd => start_statd::main(),
        Frontend::Mount(fs_type) => mount_helper::mount(&name, &fs_type),
        Frontend::Umount(_) => mount_helper::umount(&name),
        Frontend::Mounter => mounter::main(),
        Frontend::FlexVolume => flexvolume::main(),
    }
}

/// Takes over what a calling `spc` passed on, detects where this process runs, and enters the
/// client root file system if the frontend needs it.
fn prepare(frontend: &Frontend) -> Result<()> {
    caller::take_over()?;
    runs_in::detect()?;
    if frontend.needs_client() {
        enter_client_on_host()?;
    }
    Ok(())
}
