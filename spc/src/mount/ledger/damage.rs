//! Records that were begun and not finished, and those that were damaged.

use std::path::Path;
use std::time::Instant;

use super::{Corrupt, DIR, Ledger, Lock, file_of, load};
use crate::error::{Error, Result, errno_text};
use crate::host::mountinfo;

impl Ledger {
    /// Removes records that a dead command began to write, and that nobody will finish, and those of `bad` that are
    /// about nothing.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub fn sweep(&self, bad: &[Corrupt]) -> Result<()> {
        for file in self.files(DIR, "new")? {
            // Whoever holds the lock is writing it.
            if let Some(_lock) = self.lock_of(&file)? {
                self.unlink(file)?;
            }
        }
        for Corrupt { file, .. } in bad {
            if let Some(_lock) = self.lock_of(file)? {
                let again = file.clone();
                let read = self.host.run("reading the ledger", move || load(&again))?;
                if let Err(bad) = read {
                    self.drop_void(bad)?;
                }
            }
        }
        Ok(())
    }

    /// The lock of a record's file, if nobody has it.
    fn lock_of(&self, file: &Path) -> Result<Option<Lock>> {
        let name = file.file_stem().and_then(|stem| stem.to_str());
        match name.and_then(|name| u64::from_str_radix(name, 16).ok()) {
            Some(hash) => self.lock_at(hash, Instant::now(), || Ok(())),
            None => Ok(None),
        }
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
        let table = table.map_err(|e| {
            Error::system("cannot read the host's mount table").because(errno_text(e))
        })?;
        if table.iter().any(|entry| file_of(&entry.target) == about) {
            return Ok(());
        }
        tracing::warn!(file = %shown, "a record that cannot be read is removed: nothing is mounted that it could be about");
        self.unlink(file)
    }
}
