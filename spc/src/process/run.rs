//! Runs a command to its end with a time limit.

use std::io::{Error, ErrorKind, Result};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::process::marks;
use crate::process::output::Output;

/// Time for a killed child to exit.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Exit status and output of a command.
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// The end of what the command printed to stdout and stderr.
    pub output: String,
}

impl Finished {
    /// Returns the last line of the output that is not a hint of spc, or the exit status where
    /// there is none.
    pub fn last_line(&self) -> String {
        let mut lines = self.output.trim_end().lines();
        let line = lines.rfind(|line| !line.starts_with("hint: "));
        line.map_or_else(|| self.status.to_string(), str::to_owned)
    }
}

/// Runs a command to its end, with its stdout and stderr in memory.
///
/// # Errors
/// The command cannot be started, or those of [`wait_or_kill`].
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let output = Output::new()?;
    command.stdout(output.handle()?).stderr(output.handle()?);
    let status = wait_or_kill(command.spawn()?, limit)?;
    output.seal();
    Ok(Finished {
        status,
        output: output.text(),
    })
}

/// Waits for a child, and kills it after `limit`.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if spc killed the child. A process that is blocked in the kernel is left
/// behind, as no signal ends it.
pub fn wait_or_kill(mut child: Child, limit: Duration) -> Result<ExitStatus> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    if let Ok(pidfd) = &pidfd
        && marks::exited(pidfd, limit)
    {
        return child.wait();
    }
    // Fails only if the child has exited. A killed child is reaped, unless it is blocked.
    let _ = child.kill();
    marks::exited(&pidfd?, KILL_LIMIT);
    let _ = child.try_wait();
    let text = format!("no answer in {} s", limit.as_secs());
    Err(Error::new(ErrorKind::TimedOut, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_exceeds_its_limit_is_killed() {
        let mut command = Command::new("sleep");
        let late = run(command.arg("30"), Duration::from_millis(50));
        assert_eq!(late.err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
    }

    #[test]
    fn the_last_line_or_the_status_tells_why() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            run(command.args(["-c", script]), Duration::from_secs(20)).unwrap()
        };
        assert_eq!(shell("echo a; echo b >&2; exit 1").last_line(), "b");
        assert_eq!(shell("echo a; echo hint: b; exit 1").last_line(), "a");
        assert_eq!(shell("exit 3").last_line(), "exit status: 3");
    }
}
