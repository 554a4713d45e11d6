//! Records that were begun and not finished, and those that were damaged.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::host::mountinfo;
use crate::process::cancel::CancelToken;
use crate::state::store::{Corrupt, Ledger, file_named, file_of, load};

impl Ledger {
    /// Removes those of the records that were `begun` that nobody will finish, for their command is dead, and those of `bad`,
    /// which cannot be read, that are about nothing.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn sweep(&self, begun: &[u64], bad: &[u64]) -> Result<()> {
        for name in begun {
            // Whoever holds the lock is writing it.
            if let Some(_lock) = self.lock_at(*name, CancelToken::at(Instant::now()))? {
                self.unlink(file_named(*name).with_extension("new"))?;
            }
        }
        for name in bad {
            if let Some(_lock) = self.lock_at(*name, CancelToken::at(Instant::now()))? {
                let file = file_named(*name);
                let read = self.host.run("reading the ledger", move || load(&file))?;
                if let Err(bad) = read {
                    self.drop_void(bad)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a record that cannot be read, if the host has no mount that it could be about. It was damaged with the
    /// disk it is on, where `/run` is not in memory. Needs the lock.
    pub(super) fn drop_void(&self, bad: Corrupt) -> Result<()> {
        if bad.shortage {
            return Err(bad.error());
        }
        let file = bad.file;
        let shown = file.display().to_string();
        let about = file.clone();
        let table = self.host.run("looking at the mounts", mountinfo::read)?;
        let table =
            table.map_err(|e| Error::system("cannot read the host's mount table").because(e))?;
        if table.iter().any(|entry| file_of(&entry.target) == about) {
            return Ok(());
        }
        tracing::warn!(file = %shown, "a record that cannot be read is removed: nothing is mounted that it could be about");
        self.unlink(file)
    }
}
