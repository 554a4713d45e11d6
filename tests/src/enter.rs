//! `lab enter`: runs one command in a cgroup and in the namespaces of a host, and exits with its
//! status.

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::cgroup::Cgroup;

/// Exit code of a shell that cannot start a command.
const NOT_STARTED: u8 = 127;

/// Arguments of `lab enter`.
#[derive(Debug, clap::Args)]
pub struct Enter {
    /// Process whose namespaces are entered.
    pub pid: i32,
    /// Cgroup to join first.
    pub cgroup: PathBuf,
    /// Command, which inherits the environment.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Joins the cgroup and enters the namespaces, and returns the command. Only children enter the PID
/// namespace.
pub fn go(arguments: &Enter) -> Result<(&OsString, &[OsString])> {
    let Enter {
        pid,
        cgroup,
        command,
    } = arguments;
    let init = Pid::from_raw(*pid).context("no such process: 0")?;
    let init = pidfd_open(init, PidfdFlags::empty())
        .with_context(|| format!("the host has ended: pid {pid}"))?;
    Cgroup::at(cgroup).join()?;
    let kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(init.as_fd(), kinds)
        .context("cannot enter the host's namespaces")?;
    command.split_first().context("no command")
}

/// Runs the command as a child, because only a child is in the other PID namespace.
pub fn enter(arguments: &Enter) -> Result<ExitCode> {
    let (program, rest) = go(arguments)?;
    let status = match Command::new(program).args(rest).status() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("lab: cannot start {}: {error}", program.display());
            return Ok(ExitCode::from(NOT_STARTED));
        }
    };
    end_as(status.code(), status.signal())
}

/// Ends this process as a command ended: by the same signal, or with the same exit code.
pub fn end_as(code: Option<i32>, signal: Option<i32>) -> Result<ExitCode> {
    if let Some(signal) = signal {
        die_of(signal)?;
    }
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn die_of(signal: i32) -> Result<()> {
    let signal =
        Signal::from_named_raw(signal).with_context(|| format!("unknown signal: {signal}"))?;
    kill_process(getpid(), signal).context("cannot send a signal to this process")
}
