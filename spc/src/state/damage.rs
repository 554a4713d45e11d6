//! Removes unfinished and unreadable records.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::host::mountinfo;
use crate::process::cancel::CancelToken;
use crate::state::store::{Corrupt, Ledger, file_named, file_of, load};

impl Ledger {
    /// Removes orphans: `unfinished` records whose command is dead, and unreadable records (`bad`)
    /// that belong to no mount.
    ///
    /// # Errors
    /// Fails if a file cannot be removed.
    pub fn remove_orphans(&self, unfinished: &[u64], bad: &[u64]) -> Result<()> {
        for name in unfinished {
            // The lock holder, if any, is still writing the record.
            if let Some(_lock) = self.lock_at(*name, CancelToken::at(Instant::now()))? {
                self.unlink(file_named(*name).with_extension("new"))?;
            }
        }
        for name in bad {
            if let Some(_lock) = self.lock_at(*name, CancelToken::at(Instant::now()))? {
                let file = file_named(*name);
                let read = self.host.run("reading the ledger", move || load(&file))?;
                if let Err(bad) = read {
                    self.remove_orphan(bad)?;
                }
            }
        }
        Ok(())
    }

    /// Removes an unreadable record if no mount of the host has its target. The disk may have
    /// damaged the record where `/run` is not a tmpfs. The caller holds the lock of the target.
    ///
    /// # Errors
    /// Fails if the cause is a shortage of descriptors or memory, or the file cannot be removed.
    pub(super) fn remove_orphan(&self, bad: Corrupt) -> Result<()> {
        if bad.shortage {
            return Err(bad.error());
        }
        let file = bad.file;
        let shown = file.display().to_string();
        let record_file = file.clone();
        let table = self.host.run("looking at the mounts", mountinfo::read)?;
        let table =
            table.map_err(|e| Error::system("cannot read the host's mount table").because(e))?;
        if table
            .iter()
            .any(|entry| file_of(&entry.target) == record_file)
        {
            return Ok(());
        }
        tracing::warn!(file = %shown, "removed an unreadable record: no mount has its target");
        self.unlink(file)
    }
}
