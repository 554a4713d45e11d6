//! Recorded binds of a mount: their records follow when a repair replaces them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::target::{self, Rules};
use crate::process::cancel::CancelToken;
use crate::state::lock::Lock;
use crate::state::presence::entry_of;
use crate::state::{Record, Session};

/// Time limit for the locks of all binds.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Records of the binds of one mount, locked: no other command takes a replaced bind for one that
/// was unmounted.
pub struct RecordedBinds(Vec<(Lock, Record)>);

impl RecordedBinds {
    /// Locks the records of the binds of the mount on `target`. A bind that another command works
    /// on is left out.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn lock(session: &Session, target: &Path) -> Result<Self> {
        let deadline = Instant::now() + LOCK_LIMIT;
        let (records, _) = session.ledger.all()?;
        let mut locked = Vec::new();
        for record in records.into_iter().filter(|record| is_bind(record, target)) {
            let bind = Path::new(&record.target);
            let Ok(lock) = session.ledger.lock(bind, CancelToken::at(deadline)) else {
                continue;
            };
            // The record may have changed before the lock was taken.
            if let Some(record) = session.ledger.get(bind)?
                && is_bind(&record, target)
            {
                locked.push((lock, record));
            }
        }
        Ok(Self(locked))
    }

    /// Writes the ids of the new binds into their records. Failures are only logged.
    pub fn follow(self, session: &Session, repaired: &Record) {
        for (_lock, record) in self.0 {
            let target = record.target.clone();
            if let Err(error) = follow_one(session, record, repaired) {
                tracing::warn!(
                    target,
                    "the record of a repaired bind is out of date: {error}"
                );
            }
        }
    }
}

fn is_bind(record: &Record, target: &Path) -> bool {
    let csi = record.csi.as_ref();
    csi.and_then(|csi| csi.staged_at.as_deref())
        .is_some_and(|staged_at| Path::new(staged_at) == target)
}

fn follow_one(session: &Session, mut record: Record, repaired: &Record) -> Result<()> {
    let path = PathBuf::from(&record.target);
    let look = move || {
        let rules = Rules {
            mkdir: None,
            system: true,
            no_symlink_tail: usize::MAX,
        };
        let (pinned, _) = target::pin(&path, rules)?;
        Ok((pinned.mount, pinned.entry()?))
    };
    let (mount, bind) = session.host.run("looking at a bind", look)??;
    let device = entry_of(session, repaired)?.map(|entry| entry.device);
    // A bind that could not be replaced keeps its record, and shows as dead.
    let Some(bind) = bind.filter(|bind| mount.is_root && Some(&bind.device) == device.as_ref())
    else {
        return Ok(());
    };
    record.mount_id = mount.id;
    record.unique_id = mount.unique;
    record.parent_mount_id = bind.parent;
    session.ledger.put(&record)
}
