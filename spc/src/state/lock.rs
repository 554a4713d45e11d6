//! Locks of targets: one byte of one lock file each, which the kernel releases when the holder
//! dies.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Reason, Result, show};
use crate::host::hash::hash;
use crate::process::cancel::CancelToken;
use crate::state::store::{Corrupt, DIR, Ledger, file_of, load};

/// Exclusive lock of a target. Dropping it releases the lock.
pub struct Lock {
    _file: File,
}

impl Ledger {
    /// Takes the lock of a target. Waits for another command to finish until `cancel` ends the
    /// wait.
    ///
    /// # Errors
    /// Fails if the lock file cannot be created, another command held the lock all the time, or the
    /// wait was cancelled.
    pub fn lock(&self, target: &Path, cancel: CancelToken<'_>) -> Result<Lock> {
        let file = file_of(target);
        let record_file = file.clone();
        let check = move || -> std::io::Result<Option<Corrupt>> {
            // A leftover of a command that died while it wrote the record.
            match fs::remove_file(record_file.with_extension("new")) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(load(&record_file).err()),
            }
        };
        let Some((lock, bad)) = self.lock_and(hash(target), cancel, check)? else {
            return Err(
                Error::mount(format!("another spc command is using {}", show(target)))
                    .reason_is(Reason::Locked)
                    .hint("wait until that command has ended, then try again"),
            );
        };
        let bad = bad.map_err(|e| {
            let new = file.with_extension("new");
            Error::system(format!("cannot remove {} on the host", new.display())).because(e)
        })?;
        if let Some(bad) = bad {
            self.remove_orphan(bad)?;
        }
        Ok(lock)
    }

    /// Takes the lock of a name that is not a target, such as a device.
    ///
    /// # Errors
    /// Same as [`Ledger::lock`].
    pub fn lock_named(&self, name: &str, cancel: CancelToken<'_>) -> Result<Lock> {
        // Targets begin with a slash, so the names cannot collide.
        let hash = hash(Path::new(&format!("device {name}")));
        self.lock_at(hash, cancel)?.ok_or_else(|| {
            Error::mount(format!("another spc command is using {name}"))
                .reason_is(Reason::Locked)
                .hint("wait until that command has ended, then try again")
        })
    }

    /// Takes the lock of the target with this hash. Returns none if another command held it all the
    /// time.
    pub(super) fn lock_at(&self, hash: u64, cancel: CancelToken<'_>) -> Result<Option<Lock>> {
        let locked = self.lock_and(hash, cancel, || ())?;
        Ok(locked.map(|(lock, ())| lock))
    }

    /// Takes the lock like [`Ledger::lock_at`], then runs `then` on the host's thread.
    fn lock_and<T: Send + 'static>(
        &self,
        hash: u64,
        cancel: CancelToken<'_>,
        then: impl Fn() -> T + Clone + Send + 'static,
    ) -> Result<Option<(Lock, T)>> {
        let first = then.clone();
        let opened = self.host.run("locking the ledger", move || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(DIR)?;
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(format!("{DIR}/lock"))?;
            let done = try_lock(&file, hash)?.then(first);
            Ok((file, done))
        })?;
        let fail = |e: std::io::Error| {
            Error::system(format!("cannot lock {DIR}/lock on the host")).because(e)
        };
        let (file, mut done) = opened.map_err(fail)?;
        loop {
            if let Some(done) = done {
                return Ok(Some((Lock { _file: file }, done)));
            }
            if cancel.is_expired() {
                return Ok(None);
            }
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(10));
            done = match try_lock(&file, hash).map_err(fail)? {
                true => Some(self.host.run("reading the ledger", then.clone())?),
                false => None,
            };
        }
    }
}

/// Takes the lock of a target if it is free.
fn try_lock(file: &File, hash: u64) -> std::io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // Half of the hash, because file offsets are signed.
        l_start: (hash >> 1).cast_signed(),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
