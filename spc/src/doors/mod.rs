//! The ways in. Each turns what it is given into a request and leads into the pipeline.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::client::{enter, root};
use crate::error::{Class, Result, errno_text};
use crate::host::caller;
use crate::host::place::{self, Place};
use crate::host::{Host, Settings};
use crate::kinds;
use crate::log;
use crate::mount::Request;
use crate::mount::mounter::{Done, mount};
use crate::mount::run::Interrupts;
use crate::state::Session;

pub mod argv;
mod called;
pub mod cli;
pub mod flexvolume;
pub mod helper;
pub mod kubelet;
mod list;
pub mod mounter;
pub mod pages;
pub mod setup;
pub mod show;
mod statd;
pub mod umount;

use argv::Arguments;
use called::Door;

/// Acts as what the program was called as.
pub fn main() -> ExitCode {
    let door = Door::of(&std::env::args_os().next().unwrap_or_default());
    let name = door.name();
    let begun = caller::take_over().and_then(|()| {
        place::find_place()?;
        if place::place() == Place::Host && !is_done_here(&door) {
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
        Door::Statd => statd::main(),
        Door::Mount(fs_type) => helper::mount(&name, &fs_type),
        Door::Umount(_) => helper::umount(&name),
        Door::Mounter => mounter::main(),
        Door::FlexVolume => flexvolume::main(),
    }
}

/// The arguments, parsed; or what is to be said about them was said, and this is the exit code.
fn parse<T: FromArgMatches>(
    command: clap::Command,
    arguments: &Arguments,
) -> std::result::Result<T, ExitCode> {
    let parsed = command
        .try_get_matches_from(&arguments.all)
        .and_then(|matches| T::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let code = if error.use_stderr() {
            Class::Usage.exit_code()
        } else {
            0
        };
        // Nothing is left to say if nobody listens.
        let _ = if arguments.hold_secrets() {
            let text = arguments.mask(&error.render().to_string());
            std::io::stderr().write_all(text.as_bytes())
        } else {
            error.print()
        };
        ExitCode::from(code)
    })
}

/// Logs to stderr, as a person reads it who has just given the command.
fn start_log(verbose: bool, arguments: &Arguments) {
    let level = if verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    log::begin(level, log::Voice::Command);
    warn_if_seen(arguments);
}

fn warn_if_seen(arguments: &Arguments) {
    if let Some(error) = &arguments.seen {
        tracing::warn!(error = %errno_text(error.kind()), "the secret among the arguments can be seen by other processes; give it by --secret");
    }
}

/// The exit code; an error is told on stderr, as by the program of this name.
fn finish(name: &str, arguments: &Arguments, done: Result<u8>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.class().exit_code();
            let error = match error.class() {
                Class::Usage => error.hint_if_none("--help shows what is understood"),
                _ => error,
            };
            log::error(&format!("{name}: {}", arguments.mask(&error.to_string())));
            ExitCode::from(code)
        }
    }
}

/// Makes a mount, or everything but the mount.
fn make(request: Request, fake: bool, verbose: bool) -> Result<()> {
    if place::place() == Place::Host {
        // Nobody is at work here by mistake.
        root::own()?;
        if !kinds::is_clientless(&request.fs_type) {
            hand_over()?;
        }
    }
    let interrupts = Interrupts::hold()?;
    let session = Session::open()?;
    if fake {
        crate::mount::Plan::make(request, &session.host, &session.settings)?;
        return Ok(());
    }
    let done = mount(&session, request, &interrupts)?;
    if verbose {
        show::mounted(&done)?;
    } else if let Done::Already(record) = done {
        tracing::info!(target = %record.target, "already mounted");
    }
    Ok(())
}

/// On the host itself, becomes the `spc` of the installed client root, unless what is to be taken off is on one target, and
/// no client was needed to mount it.
fn leave_to_client(session: &Session, target: Option<&Path>) -> Result<()> {
    let known = target.map(|target| session.ledger.get(target));
    match known {
        _ if session.place != Place::Host => Ok(()),
        Some(Ok(Some(record)))
            if kinds::is_clientless(&record.fs_type) && record.root.is_none() =>
        {
            Ok(())
        }
        _ => hand_over().map(drop),
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

/// On the host itself nothing can be done: becomes the `spc` of the installed client root.
fn hand_over() -> Result<Infallible> {
    let settings = Settings::read()?;
    let id = root::own()?;
    enter::same_again(&Host::open(&settings)?, &settings, &id)
}
