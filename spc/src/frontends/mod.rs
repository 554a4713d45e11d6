//! The ways in. Each turns what it is given into a request and leads into the pipeline.

use std::process::ExitCode;

use crate::frontends::argv0::Frontend;
use crate::frontends::common::hand_over;
use crate::frontends::kubelet::{flexvolume, mounter};
use crate::host::caller;
use crate::host::runs_in::{self, RunsIn};
use crate::log;

pub mod argv0;
pub mod cli;
pub mod common;
pub mod kubelet;
pub mod mount_helper;
pub mod secret_args;
pub mod start_statd;

/// Acts as what the program was called as.
pub fn main() -> ExitCode {
    let door = Frontend::from_argv0(&std::env::args_os().next().unwrap_or_default());
    let name = door.name();
    let begun = caller::take_over().and_then(|()| {
        runs_in::detect()?;
        if runs_in::current() == RunsIn::Host && !is_done_here(&door) {
            hand_over()?;
        }
        Ok(())
    });
    if let Err(error) = begun {
        if door == Frontend::FlexVolume {
            return flexvolume::refuse(error);
        }
        log::error(&format!("{name}: {error}"));
        return ExitCode::from(error.class().exit_code());
    }
    match door {
        Frontend::Cli => cli::main(),
        Frontend::Statd => start_statd::main(),
        Frontend::Mount(fs_type) => mount_helper::mount(&name, &fs_type),
        Frontend::Umount(_) => mount_helper::umount(&name),
        Frontend::Mounter => mounter::main(),
        Frontend::FlexVolume => flexvolume::main(),
    }
}

/// Whether this is done on the host: another `spc` has started this one for that, it is a driver's answer to kubelet,
/// whose work another process does, it takes away the very client root that would do it, or no client is needed.
fn is_done_here(door: &Frontend) -> bool {
    match door {
        Frontend::Cli => {}
        // It depends on what is mounted.
        Frontend::FlexVolume | Frontend::Mount(_) | Frontend::Umount(_) => return true,
        Frontend::Statd | Frontend::Mounter => return false,
    }
    let mut words = std::env::args_os().skip(1);
    let here = [
        "keep",
        "adopt",
        "uninstall",
        // It depends on what is mounted.
        "mount",
        "umount",
        "unmount",
        // What is asked about the program.
        "completions",
        "help",
        "man",
        "pages",
        "--help",
        "-h",
        "--version",
        "-V",
    ];
    match words.next() {
        Some(command) if here.iter().any(|word| command == *word) => true,
        Some(command) if command == "flexvolume" => {
            words.next().is_none_or(|word| word != "--work")
        }
        _ => false,
    }
}
