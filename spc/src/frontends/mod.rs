//! The ways in. Each turns what it is given into a request and leads into the pipeline.

use std::process::ExitCode;

use crate::frontends::argv0::Door;
use crate::frontends::common::hand_over;
use crate::frontends::kubelet::{flexvolume, mounter};
use crate::host::caller;
use crate::host::runs_in::{self, Place};
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
    let door = Door::of(&std::env::args_os().next().unwrap_or_default());
    let name = door.name();
    let begun = caller::take_over().and_then(|()| {
        runs_in::find_place()?;
        if runs_in::place() == Place::Host && !is_done_here(&door) {
            hand_over()?;
        }
        Ok(())
    });
    if let Err(error) = begun {
        if door == Door::FlexVolume {
            return flexvolume::refuse(error);
        }
        log::error(&format!("{name}: {error}"));
        return ExitCode::from(error.class().exit_code());
    }
    match door {
        Door::Cli => cli::main(),
        Door::Statd => start_statd::main(),
        Door::Mount(fs_type) => mount_helper::mount(&name, &fs_type),
        Door::Umount(_) => mount_helper::umount(&name),
        Door::Mounter => mounter::main(),
        Door::FlexVolume => flexvolume::main(),
    }
}

/// Whether this is done on the host: another `spc` has started this one for that, it is a driver's answer to kubelet,
/// whose work another process does, it takes away the very client root that would do it, or no client is needed.
fn is_done_here(door: &Door) -> bool {
    match door {
        Door::Cli => {}
        // It depends on what is mounted.
        Door::FlexVolume | Door::Mount(_) | Door::Umount(_) => return true,
        Door::Statd | Door::Mounter => return false,
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
