//! Ranges of a file that are held by locks of the kernel (OFD locks, fcntl(2)): nothing is written, and whoever dies gives up
//! what it held.

use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A file whose ranges mean something; each opening of it holds its own.
pub struct Ranges(pub File);

/// A range that another has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its first byte.
    pub start: i64,
    /// How long it is.
    pub length: i64,
}

impl Ranges {
    /// Opens the file, and makes it and its directory if need be; run it on the host's thread.
    ///
    /// # Errors
    /// The errno of open(2) or mkdir(2).
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

    /// Takes a range, unless another has a part of it.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn take(&self, start: i64, length: i64) -> Result<bool> {
        match self.set(FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK, start, length))) {
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            taken => Ok(taken.map(|()| true)?),
        }
    }

    /// Gives a range up.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn leave(&self, start: i64, length: i64) -> Result<()> {
        Ok(self.set(FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, start, length)))?)
    }

    /// A range that another has, and that is in this one, or a part of it is.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn held(&self, start: i64, length: i64) -> Result<Option<Held>> {
        // Those who only wait have a lock for readers.
        let mut found = lock(libc::F_RDLCK, start, length);
        self.set(FcntlArg::F_OFD_GETLK(&mut found))?;
        let free = libc::c_int::from(found.l_type) == libc::F_UNLCK;
        Ok((!free).then_some(Held {
            start: found.l_start,
            length: found.l_len,
        }))
    }

    /// Waits until nobody else has this byte.
    pub fn wait(&self, at: i64) {
        let wait = lock(libc::F_RDLCK, at, 1);
        while self.set(FcntlArg::F_OFD_SETLKW(&wait)) == Err(Errno::EINTR) {}
        // Nobody is to wait for us there.
        let _ = self.leave(at, 1);
    }

    fn set(&self, what: FcntlArg<'_>) -> nix::Result<()> {
        fcntl(&self.0, what).map(drop)
    }
}

fn lock(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    libc::flock {
        // These are small.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}
