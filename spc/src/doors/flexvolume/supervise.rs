//! The process that kubelet waits for: it starts the worker, and answers for it whatever becomes of it.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use super::reply::Reply;
use super::{Call, volume};
use crate::error::{Error, Result, errno_text};
use crate::host::output::Output;
use crate::mount::run::{Ended, Interrupts, describe, wait};
use crate::sys;

/// How long a worker may take beyond the limit of the mount, to undo what is half made.
const GRACE: Duration = Duration::from_secs(20);

/// How long an unmount or a look may take.
const LIMIT: Duration = Duration::from_secs(100);

/// The worker's own program: ours.
const WORKER: &str = "/proc/self/exe";

/// Has the call done.
///
/// # Errors
/// The worker cannot be started, does not end in time, or did not answer.
pub fn run(call: &Call<'_>) -> Result<Reply> {
    let (words, json, limit) = match *call {
        Call::Answered(ref reply) => return Ok(reply.clone()),
        Call::Mount { dir, json } => (vec!["mount", dir], json, volume::timeout(json)? + GRACE),
        Call::Unmount { dir } => (vec!["unmount", dir], "", LIMIT),
        Call::ExpandFs { dir, .. } => (vec!["expandfs", dir], "", LIMIT),
    };
    let size = match call {
        Call::ExpandFs { size, .. } => Some(size.to_string()),
        _ => None,
    };
    let fail = |e: std::io::Error| {
        Error::system("cannot start the work of this call").because(errno_text(e))
    };
    let interrupts = Interrupts::hold()?;
    let (said, answer) = (Output::new().map_err(fail)?, Output::new().map_err(fail)?);
    let mut command = Command::new(WORKER);
    command
        .arg0("spc")
        .args(["flexvolume", "--work"])
        .args(words)
        .args(size)
        .stdin(in_memory(json).map_err(fail)?)
        .stdout(answer.handle().map_err(fail)?)
        .stderr(said.handle().map_err(fail)?);
    let started = Instant::now();
    // What kubelet may have left open is for nobody but us.
    let mut child = sys::tie_to_parent(sys::keep_standard(&mut command))
        .spawn()
        .map_err(fail)?;
    let ended = wait(
        &mut child,
        "the work of this call",
        started,
        started + limit,
        Some(&interrupts),
    );
    if let Some(reply) = Reply::read(&answer.text()) {
        return Ok(reply);
    }
    let failed = Error::system("the call was not answered");
    let failed = match ended.map(describe) {
        Ok(Ended::Code(code)) => failed.because(format!("exit status {code}")),
        Ok(Ended::Signal(signal)) => failed
            .because(format!("killed by signal {signal}"))
            .hint("kubelet tries again, and what is half made is undone then; if memory is short, dmesg says so"),
        Err(error) => failed.because(error.summary()),
    };
    Err(failed.log(said.last_lines(|line| Some(line))))
}

/// A text that is in memory only.
fn in_memory(text: &str) -> std::io::Result<Stdio> {
    let mut file = File::from(memfd_create("volume", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(Stdio::from(file))
}
