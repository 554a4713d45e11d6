//! Runs a program of the host in the host's namespaces, with a time limit.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::cgroup;
use crate::process::run;
use crate::sys;

/// Limit for one program.
const LIMIT: Duration = Duration::from_secs(60);

/// Exit status and output of a program.
pub struct ToolResult {
    name: String,
    /// Whether the exit status is 0.
    pub success: bool,
    output: String,
}

impl ToolResult {
    /// Returns what the program printed to stdout and stderr, trimmed.
    ///
    /// # Errors
    /// The exit status is not 0. The output is in the error's log.
    pub fn into_output(self) -> Result<String> {
        let output = self.output.trim();
        if self.success {
            return Ok(output.to_owned());
        }
        let lines = output.lines().map(str::to_owned).collect();
        Err(Error::system(format!("{} on the host failed", self.name)).log(lines))
    }
}

/// Runs a program of the host and waits until it exits.
///
/// # Errors
/// The host has no such program, or it exceeds the limit of 60 s.
pub fn run(program: &str, args: &[&str]) -> Result<ToolResult> {
    let name = [&[program], args].concat().join(" ");
    let fail =
        |e: std::io::Error| Error::system(format!("cannot run {name} on the host")).because(e);
    let mut command = cgroup::host_command(program).map_err(fail)?;
    let command = sys::tie_to_parent(command.args(args));
    let finished = run::run(command, LIMIT).map_err(fail)?;
    Ok(ToolResult {
        name,
        success: finished.status.success(),
        output: finished.output,
    })
}
