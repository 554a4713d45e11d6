//! The right to work on a target: one byte of one file for each, which the kernel takes back when its holder dies.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::{DIR, Ledger, file_of, hash, load};
use crate::error::{Error, Reason, Result, errno_text};
use crate::host::target::show;

/// Exclusive right to a target, until dropped.
pub struct Lock {
    _file: File,
}

impl Ledger {
    /// Takes the lock of a target, waiting until `deadline` for another command to finish, or until
    /// `go_on` fails, which is asked all the while.
    ///
    /// # Errors
    /// The lock file cannot be made, another command held the lock all the time, or `go_on` failed.
    pub fn lock(
        &self,
        target: &Path,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Lock> {
        match self.lock_at(hash(target), deadline, go_on)? {
            Some(lock) => {
                // What a dead command began to write and did not finish.
                self.unlink(file_of(target).with_extension("new"))?;
                let file = file_of(target);
                let read = self.host.run("reading the ledger", move || load(&file))?;
                if let Err(bad) = read {
                    self.drop_void(bad)?;
                }
                Ok(lock)
            }
            None => Err(
                Error::mount(format!("another spc is at work on {}", show(target)))
                    .reason_is(Reason::Locked)
                    .hint("wait until it has ended, then try again"),
            ),
        }
    }

    /// Takes the lock of something that is no target, such as a device.
    ///
    /// # Errors
    /// As [`Ledger::lock`].
    pub fn lock_named(
        &self,
        name: &str,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Lock> {
        // No target begins like that.
        let hash = hash(Path::new(&format!("device {name}")));
        self.lock_at(hash, deadline, go_on)?.ok_or_else(|| {
            Error::mount(format!("another spc is at work on {name}"))
                .reason_is(Reason::Locked)
                .hint("wait until it has ended, then try again")
        })
    }

    /// Takes the lock of the target with this hash; None if another command held it all the time.
    pub(super) fn lock_at(
        &self,
        hash: u64,
        deadline: Instant,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Option<Lock>> {
        let file = self.host.run("locking the ledger", || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(DIR)?;
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(format!("{DIR}/lock"))
        })?;
        let file = file.map_err(|e| {
            Error::system(format!("cannot open {DIR}/lock on the host")).because(errno_text(e))
        })?;
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            // Offsets are not negative.
            l_start: (hash >> 1).cast_signed(),
            l_len: 1,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => return Ok(Some(Lock { _file: file })),
                Err(nix::Error::EAGAIN | nix::Error::EACCES) if Instant::now() < deadline => {
                    go_on()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Ok(None),
                Err(error) => {
                    return Err(Error::system(format!("cannot lock {DIR}/lock on the host"))
                        .because(errno_text(error)));
                }
            }
        }
    }
}
