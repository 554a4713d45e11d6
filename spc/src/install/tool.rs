//! Runs a program of the host as one of its processes, bounded in time.

use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::error::{Error, Result};
use crate::host::cgroup;
use crate::process::output::Output;
use crate::process::wait::wait;
use crate::sys;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended.
pub struct Done {
    name: String,
    /// Whether it succeeded.
    pub ok: bool,
    said: String,
}

impl Done {
    /// What it printed, if it succeeded.
    ///
    /// # Errors
    /// It did not.
    pub fn done(self) -> Result<String> {
        let said = self.said.trim();
        if self.ok {
            return Ok(said.to_owned());
        }
        let lines = said.lines().map(str::to_owned).collect();
        Err(Error::system(format!("{} on the host failed", self.name)).log(lines))
    }
}

/// Runs it to its end.
///
/// # Errors
/// The host has no such program, or it takes too long.
pub fn run(program: &str, args: &[&str]) -> Result<Done> {
    let name = [&[program], args].concat().join(" ");
    let fail =
        |e: std::io::Error| Error::system(format!("cannot run {name} on the host")).because(e);
    let output = Output::new().map_err(fail)?;
    let mut command = cgroup::on_host(program).map_err(fail)?;
    command
        .args(args)
        .stdout(output.handle().map_err(fail)?)
        .stderr(output.handle().map_err(fail)?);
    let child = sys::tie_to_parent(&mut command).spawn().map_err(fail)?;
    let started = Instant::now();
    let status = wait(
        Pid::from_child(&child),
        &name,
        started,
        started + LIMIT,
        None,
    )?;
    Ok(Done {
        name,
        ok: status.success(),
        said: output.text(),
    })
}
