//! Lock file of a directory (flock(2)). The kernel releases the lock when its holder dies.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Pause between attempts.
const RETRY: Duration = Duration::from_millis(5);

/// Mode of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Lock that several processes may hold at the same time.
    Shared,
    /// Lock that only one process holds.
    Exclusive,
}

/// Opens the lock file of a directory. A missing directory is created with this mode. For a
/// directory on the host, run it on the host's thread.
///
/// # Errors
/// Returns the errno of mkdir(2) or open(2).
pub fn open(dir: &Path, mode: u32) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))
}

/// Acquires the lock and waits for its holders, at most for `limit`. The lock lasts until the file
/// is dropped (flock(2)).
///
/// # Errors
/// Returns [`io::ErrorKind::TimedOut`] if the lock was held all the time, or the errno of flock(2).
pub fn acquire(file: &File, mode: LockMode, limit: Duration) -> io::Result<()> {
    let until = Instant::now() + limit;
    loop {
        let tried = match mode {
            LockMode::Shared => file.try_lock_shared(),
            LockMode::Exclusive => file.try_lock(),
        };
        match tried.map_err(|error| (is_held(&error), error)) {
            Ok(()) => return Ok(()),
            Err((true, _)) if Instant::now() < until => std::thread::sleep(RETRY),
            // The errno is left out, because it selects the hint about too many processes.
            Err((true, _)) => {
                let held = format!("held by another process for {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, held));
            }
            Err((false, error)) => return Err(error.into()),
        }
    }
}

/// Returns the hint for an error of [`open`], which is `open_hint`, or of [`acquire`].
pub fn hint(error: &io::Error, open_hint: &'static str) -> &'static str {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            "look for another spc process that does not end or is stopped: ps -C spc -o pid,stat,args"
        }
        _ => open_hint,
    }
}

/// Returns whether another attempt may succeed, because the lock is held or a signal came.
fn is_held(error: &TryLockError) -> bool {
    match error {
        TryLockError::WouldBlock => true,
        TryLockError::Error(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_ends_when_its_file_is_dropped() {
        let dir = std::env::temp_dir().join(format!("spc-lock-{}", std::process::id()));
        let lock = || open(&dir.join("below"), 0o700).unwrap();
        let (first, second, third) = (lock(), lock(), lock());
        acquire(&first, LockMode::Shared, Duration::ZERO).unwrap();
        acquire(&second, LockMode::Shared, Duration::ZERO).unwrap();
        let late = acquire(&third, LockMode::Exclusive, Duration::from_millis(20)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(first);
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(second);
        });
        acquire(&third, LockMode::Exclusive, Duration::from_secs(20)).unwrap();
        ends.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
