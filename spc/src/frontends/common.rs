//! Code that all frontends share: parsing, logging, exit codes, and the hand-over to a client root file system.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::client::{enter, root};
use crate::error::{Class, Result, errno_text};
use crate::frontends::cli::output;
use crate::frontends::secret_args::Arguments;
use crate::host::runs_in::{self, RunsIn};
use crate::host::{Host, Settings};
use crate::mount::Request;
use crate::mount::pipeline::{Done, mount};
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::{kinds, log};

/// The arguments, parsed; or what is to be said about them was said, and this is the exit code.
pub(crate) fn parse<T: FromArgMatches>(
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
pub(crate) fn start_log(verbose: bool, arguments: &Arguments) {
    let level = if verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    log::begin(level, log::Voice::Command);
    warn_if_seen(arguments);
}

pub(crate) fn warn_if_seen(arguments: &Arguments) {
    if let Some(error) = &arguments.seen {
        tracing::warn!(error = %errno_text(error.kind()), "the secret among the arguments can be seen by other processes; give it by --secret");
    }
}

/// The exit code; an error is told on stderr, as by the program of this name.
pub(crate) fn finish(name: &str, arguments: &Arguments, done: Result<u8>) -> ExitCode {
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
pub(crate) fn make(request: Request, fake: bool, verbose: bool) -> Result<()> {
    if runs_in::current() == RunsIn::Host {
        // Nobody is at work here by mistake.
        root::own()?;
        if !kinds::is_clientless(&request.fs_type) {
            hand_over()?;
        }
    }
    let interrupts = Interrupts::hold()?;
    let session = Session::open()?;
    if fake {
        crate::mount::plan::Plan::make(request, &session.host)?;
        return Ok(());
    }
    let done = mount(&session, request, &interrupts)?;
    if verbose {
        output::mounted(&done)?;
    } else if let Done::Already(record) = done {
        tracing::info!(target = %record.target, "already mounted");
    }
    Ok(())
}

/// On the host itself, becomes the `spc` of the installed client root, unless what is to be taken off is on one target, and
/// no client was needed to mount it.
pub(crate) fn leave_to_client(session: &Session, target: Option<&Path>) -> Result<()> {
    let known = target.map(|target| session.ledger.get(target));
    match known {
        _ if session.runs_in != RunsIn::Host => Ok(()),
        Some(Ok(Some(record)))
            if kinds::is_clientless(&record.fs_type) && record.root.is_none() =>
        {
            Ok(())
        }
        _ => hand_over().map(drop),
    }
}

/// On the host itself nothing can be done: becomes the `spc` of the installed client root.
pub(crate) fn hand_over() -> Result<Infallible> {
    let settings = Settings::read()?;
    let id = root::own()?;
    enter::same_again(&Host::open(settings)?, &id)
}
