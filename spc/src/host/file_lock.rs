//! Turns: the lock of a directory, a file in it, which the kernel gives back when its holder dies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(5);

/// Opens the lock of a directory, which is made with this mode if it is not there. Run it where the directory is.
///
/// # Errors
/// The errno of the call that failed.
pub fn open(dir: &Path, mode: u32) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))
}

/// Takes the lock, until the file is dropped: shared or exclusive, and waits so long for the others.
///
/// # Errors
/// They had it all the time, or the errno of flock(2).
pub fn take(file: &File, how: FlockOperation, limit: Duration) -> io::Result<()> {
    let until = Instant::now() + limit;
    loop {
        match flock(file, how) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(AGAIN);
            }
            // Not in the words of its errno, which tell of too many processes.
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let others = format!("others had it for {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, others));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FlockOperation::{NonBlockingLockExclusive as Alone, NonBlockingLockShared as Shared};

    #[test]
    fn a_turn_ends_with_its_file() {
        let dir = std::env::temp_dir().join(format!("spc-turn-{}", std::process::id()));
        let lock = || open(&dir.join("below"), 0o700).unwrap();
        let (first, second, third) = (lock(), lock(), lock());
        take(&first, Shared, Duration::ZERO).unwrap();
        take(&second, Shared, Duration::ZERO).unwrap();
        let late = take(&third, Alone, Duration::from_millis(20)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(first);
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(second);
        });
        take(&third, Alone, Duration::from_secs(20)).unwrap();
        ends.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
