//! Code that frontends share: parsing, logging, exit codes, and the switch to the `spc` of a client
//! root file system.

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
use crate::mount::pipeline::{MountOutcome, mount};
use crate::mount::remount::{REMOUNT, remount};
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::{kinds, log};

/// Parses the arguments.
///
/// # Errors
/// Help, version, or an error about the arguments was printed; the error is the exit code. Secrets
/// in the message are masked.
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
        // A closed stderr leaves no way to report anything.
        let _ = if arguments.hold_secrets() {
            let text = arguments.mask(&error.render().to_string());
            std::io::stderr().write_all(text.as_bytes())
        } else {
            error.print()
        };
        ExitCode::from(code)
    })
}

/// Starts the log of a command on stderr, and warns if a secret in the arguments stays visible.
///
/// The level is DEBUG if `verbose`, otherwise WARN.
pub(crate) fn start_log(verbose: bool, arguments: &Arguments) {
    let level = if verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    log::init(level, log::LogMode::Command);
    warn_if_visible(arguments);
}

/// Warns if other processes can still read a secret in the arguments.
pub(crate) fn warn_if_visible(arguments: &Arguments) {
    if let Some(error) = &arguments.visible {
        tracing::warn!(
            error = %errno_text(error.kind()),
            "other processes can read a secret in the arguments; pass it with --secret"
        );
    }
}

/// Returns the exit code of a command. An error is printed on stderr after the program's name.
pub(crate) fn finish(name: &str, arguments: &Arguments, done: Result<u8>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.class().exit_code();
            let error = match error.class() {
                Class::Usage => error.hint_if_none("--help lists the accepted arguments"),
                _ => error,
            };
            log::error(&format!("{name}: {}", arguments.mask(&error.to_string())));
            ExitCode::from(code)
        }
    }
}

/// Makes a mount, or changes one (`remount`); with `fake`, only plans it.
///
/// # Errors
/// The mount fails, or a signal stops it. On the host itself: no client is installed, or the caller
/// has a mount namespace or a root directory of its own.
pub(crate) fn run_mount(request: Request, fake: bool, verbose: bool) -> Result<()> {
    if runs_in::current() == RunsIn::Host {
        // Fails unless spc is installed, also for types that need no client.
        root::own_id()?;
        Host::open(Settings::read()?)?.check_caller()?;
    }
    if request.options.has(REMOUNT) {
        return match fake {
            true => Ok(()),
            false => remount(&Session::open()?, &request.target, &request.options),
        };
    }
    if runs_in::current() == RunsIn::Host && !kinds::is_clientless(&request.fs_type) {
        exec_client_spc()?;
    }
    let interrupts = Interrupts::block()?;
    let session = Session::open()?;
    if fake {
        crate::mount::plan::Plan::new(request, &session.host)?;
        return Ok(());
    }
    let done = mount(&session, request, &interrupts)?;
    if verbose {
        output::mounted(&done)?;
    } else if let MountOutcome::AlreadyMounted(record) = done {
        tracing::info!(target = %record.target, "already mounted");
    }
    Ok(())
}

/// Enters the client root file system to unmount, if this process runs on the host itself.
///
/// Stays on the host for a single target whose recorded mount was made without a client.
///
/// # Errors
/// No client is installed, or its `spc` cannot be started; or the caller has a mount namespace or a
/// root directory of its own.
pub(crate) fn enter_client_to_unmount(session: &Session, target: Option<&Path>) -> Result<()> {
    session
        .host
        .check_caller()
        .map_err(|error| error.hint_also("umount -i TARGET unmounts the caller's own copy"))?;
    let record = target.map(|target| session.ledger.get(target));
    match record {
        _ if session.runs_in != RunsIn::Host => Ok(()),
        Some(Ok(Some(record)))
            if kinds::is_clientless(&record.fs_type) && record.root.is_none() =>
        {
            Ok(())
        }
        _ => exec_client_spc().map(drop),
    }
}

/// Enters the client root file system, if this process runs on the host itself.
///
/// # Errors
/// No client is installed, or its `spc` cannot be started.
pub(crate) fn enter_client_on_host() -> Result<()> {
    if runs_in::current() == RunsIn::Host {
        exec_client_spc()?;
    }
    Ok(())
}

/// Replaces this process with the `spc` of the installed client root file system, with the same
/// arguments.
fn exec_client_spc() -> Result<Infallible> {
    let settings = Settings::read()?;
    let id = root::own_id()?;
    enter::exec_in_client_root(&Host::open(settings)?, &id)
}
