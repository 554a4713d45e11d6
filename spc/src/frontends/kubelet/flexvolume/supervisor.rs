//! Process that kubelet waits for. It starts the worker, and replies however the worker ends.

use std::time::Duration;

use crate::error::Result;
use crate::frontends::kubelet::flexvolume::call::Call;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;
use crate::process::interrupts::Interrupts;
use crate::volume::worker::{self, ROLLBACK_TIME, WorkerCall};

/// Limit for `unmount` and `expandfs`.
const LIMIT: Duration = Duration::from_secs(100);

/// Runs a call in a worker process, and returns its reply.
///
/// # Errors
/// The worker cannot be started, does not end in time, or ends without a reply.
pub fn run(call: &Call<'_>) -> Result<Reply> {
    let size;
    let (words, input, limit) = match *call {
        Call::Answered(ref reply) => return Ok(reply.clone()),
        Call::Mount { dir, json } => (
            vec!["mount", dir],
            json,
            volume::timeout(json)? + ROLLBACK_TIME,
        ),
        Call::Unmount { dir } => (vec!["unmount", dir], "", LIMIT),
        Call::ExpandFs { dir, size: wanted } => {
            size = wanted.to_string();
            (vec!["expandfs", dir, size.as_str()], "", LIMIT)
        }
    };
    let interrupts = Interrupts::block()?;
    let call = WorkerCall {
        words: &[&["flexvolume", "--work"], &words[..]].concat(),
        input,
        limit,
        logs_here: false,
    };
    let end = worker::run(&call, Some(&interrupts))?;
    Reply::read(&end.stdout).ok_or_else(|| end.no_reply())
}
