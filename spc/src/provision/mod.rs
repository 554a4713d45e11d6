//! Volumes on request (dynamic provisioning): creates, expands, archives and removes directories of
//! shares for the controller service.
//!
//! A volume is a directory below the root of a backend, and a note about it on the same share. All
//! calls go through a descriptor of the backend's root, so no name and no link in the tree leads
//! out of it.

pub mod backends;
pub mod class;
mod directory;
mod failure;
pub mod notes;
mod remove;
#[cfg(test)]
mod scratch;
mod share;
mod shared_mount;
mod task;

pub use backends::Backend;
pub use directory::{Directory, VolumeId};
pub use failure::{Failure, FailureKind};
pub use share::{Share, missing_capability};
pub use shared_mount::release;
pub use task::Task;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::volume::Volume;

/// Work for a worker process. `Debug` is not derived, because the secrets must not reach a log.
#[derive(Clone, Serialize, Deserialize)]
pub struct Work {
    /// Backend of the volume.
    pub backend: Backend,
    /// Secrets of the backend's mount.
    pub secrets: BTreeMap<String, String>,
    /// Task to run on the backend.
    pub task: Task,
}

/// Mounts the backend of a volume if necessary, and runs a task on it. Returns the size of the
/// volume in bytes; 0 if it has no limit.
///
/// # Errors
/// The id is not one of this backend, the backend cannot be mounted, or the task fails.
pub fn run(
    session: &Session,
    work: &Work,
    volume_id: &str,
    root: &Volume,
    interrupts: &Interrupts,
    deadline: Instant,
) -> Result<u64, Failure> {
    let id = VolumeId::parse(volume_id)
        .filter(|id| id.backend == work.backend.name)
        .ok_or_else(|| Error::usage("bad volume id"))?;
    // A call may still run when its client has given up and repeats it.
    let name = format!("volume {id}");
    let _lock = session
        .ledger
        .lock_named(&name, interrupts.until(deadline))?;
    let share = shared_mount::open(session, &id.backend, root, interrupts, deadline)?;
    task::run(
        &share,
        &id.directory,
        work.backend.quota,
        &work.task,
        deadline,
    )
}
