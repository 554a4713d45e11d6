//! Byte-range locks of a file (OFD locks, fcntl(2)). The kernel releases the locks of a process
//! that dies.

use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// File whose byte ranges are locked. Each `Ranges` owns the locks that it acquired.
pub struct Ranges(pub File);

/// Range that another owner has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRange {
    /// Offset of the first byte.
    pub start: i64,
    /// Number of bytes.
    pub length: i64,
}

impl Ranges {
    /// Opens the file, and creates it and its directory if they are missing. Run it on the host's
    /// thread.
    ///
    /// # Errors
    /// Returns the errno of open(2) or mkdir(2).
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        options.open(path).map(Self)
    }

    /// Locks a range exclusively. Returns false if another owner has locked a part of it.
    ///
    /// # Errors
    /// Returns the errno of fcntl(2).
    pub fn try_lock(&self, start: i64, length: i64) -> Result<bool> {
        match self.fcntl(FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK, start, length))) {
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            locked => Ok(locked.map(|()| true)?),
        }
    }

    /// Unlocks a range.
    ///
    /// # Errors
    /// Returns the errno of fcntl(2).
    pub fn unlock(&self, start: i64, length: i64) -> Result<()> {
        Ok(self.fcntl(FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, start, length)))?)
    }

    /// Returns an exclusively locked range of another owner that overlaps this one.
    ///
    /// # Errors
    /// Returns the errno of fcntl(2).
    pub fn conflicting(&self, start: i64, length: i64) -> Result<Option<HeldRange>> {
        // A query for a read lock skips the read locks of waiters.
        let mut found = lock(libc::F_RDLCK, start, length);
        self.fcntl(FcntlArg::F_OFD_GETLK(&mut found))?;
        let free = libc::c_int::from(found.l_type) == libc::F_UNLCK;
        Ok((!free).then_some(HeldRange {
            start: found.l_start,
            length: found.l_len,
        }))
    }

    /// Waits until no other owner has locked this byte exclusively.
    pub fn wait_until_free(&self, at: i64) {
        let wait = lock(libc::F_RDLCK, at, 1);
        while self.fcntl(FcntlArg::F_OFD_SETLKW(&wait)) == Err(Errno::EINTR) {}
        // The read lock must not block the next owner of the byte.
        let _ = self.unlock(at, 1);
    }

    fn fcntl(&self, command: FcntlArg<'_>) -> nix::Result<()> {
        fcntl(&self.0, command).map(drop)
    }
}

/// Returns the parameters of a lock for fcntl(2).
fn lock(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    libc::flock {
        // The constants fit into 16 bits.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}
