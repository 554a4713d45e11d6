//! Lets one process at a time block on a mount, however many want to probe it.
//!
//! A syscall on a dead file system can block in uninterruptible sleep until reboot. Before making
//! one, a process takes an OFD lock on the byte range of that mount in a file on the host. The
//! lock's length encodes CLOCK_BOOTTIME at the start of the call. Other processes can therefore see
//! how long it has been blocked and need not block themselves.

use std::io::Result;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::{self, Error};
use crate::host::Host;
use crate::host::mount_id::MountId;
use crate::host::ranges::Ranges;

/// Lock file on the host.
const FILE: &str = "/run/spc/looks";

/// Bits of an offset within the byte range of one mount: the range holds any value of the clock.
const RANGE_BITS: u32 = 32;

/// Clock ticks per second in a lock's length.
const TICKS: i64 = 16;

/// Locks of the processes that may block on a mount, by the mount's id.
pub struct WaiterLock(Ranges);

impl WaiterLock {
    /// Opens the lock file.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn open(host: &Host) -> error::Result<Self> {
        let opened = host.run("opening the waiter locks", Self::open_here)?;
        opened.map_err(cannot_use)
    }

    /// Does the same as [`WaiterLock::open`] on a thread that is in the host's mount namespace.
    ///
    /// # Errors
    /// Fails with the errno of open(2) or mkdir(2).
    pub fn open_here() -> Result<Self> {
        Ranges::open(Path::new(FILE)).map(Self)
    }

    /// Takes the lock of a mount and returns none. If another process holds the lock, returns how
    /// long that process has been blocked.
    ///
    /// # Errors
    /// Fails with the errno of fcntl(2).
    pub fn try_acquire(&self, mount: u64) -> Result<Option<Duration>> {
        let (start, now) = (start(mount), now());
        loop {
            if self.0.try_lock(start, now)? {
                return Ok(None);
            }
            // Without a conflict, the holder released the lock just now: try again.
            if let Some(held) = self.0.conflicting(start, now)? {
                let ticks = u64::try_from(now - held.length).unwrap_or(0);
                return Ok(Some(
                    Duration::from_secs(ticks) / u32::try_from(TICKS).unwrap_or(1),
                ));
            }
        }
    }

    /// Releases the lock of a mount that has responded.
    pub fn release(&self, mount: u64) {
        // On failure the lock ends with this process.
        let _ = self.0.unlock(start(mount), 1 << RANGE_BITS);
    }
}

/// Returns the error for a lock file that cannot be used.
pub fn cannot_use(error: std::io::Error) -> Error {
    Error::system(format!("cannot use {FILE} on the host"))
        .because(error)
        .hint("make room below /run on the host")
}

/// Returns the id by which a mount is locked: the unique one where the kernel has it.
pub fn key(mount: MountId) -> u64 {
    match mount.unique {
        0 => mount.id,
        unique => unique,
    }
}

/// Returns the start of a mount's byte range. Unique ids count up from 2^31, so their lower 31 bits
/// differ for all mounts of one boot.
fn start(mount: u64) -> i64 {
    i64::try_from(mount & 0x7fff_ffff).unwrap_or(0) << RANGE_BITS
}

/// Returns CLOCK_BOOTTIME in ticks, at least 1.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    let ticks = now.tv_sec * TICKS + now.tv_nsec * TICKS / 1_000_000_000;
    ticks.clamp(1, (1 << RANGE_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_waiter_learns_how_long_the_first_has_been_blocked() {
        let path = std::env::temp_dir().join(format!("spc-looks-{}", std::process::id()));
        let waiter = || WaiterLock(Ranges::open(&path).unwrap());
        let (first, second) = (waiter(), waiter());
        assert_eq!(first.try_acquire(1 << 31 | 5).unwrap(), None);
        std::thread::sleep(Duration::from_millis(200));
        let since = second.try_acquire(1 << 31 | 5).unwrap().unwrap();
        let expected = Duration::from_millis(125)..Duration::from_secs(20);
        assert!(expected.contains(&since), "{since:?}");
        // Other mounts are not affected.
        assert_eq!(second.try_acquire(1 << 31 | 6).unwrap(), None);
        assert_eq!(second.try_acquire(1 << 31 | 4).unwrap(), None);
        first.release(1 << 31 | 5);
        assert_eq!(second.try_acquire(1 << 31 | 5).unwrap(), None);
        drop(second);
        assert_eq!(first.try_acquire(1 << 31 | 5).unwrap(), None);
        std::fs::remove_file(path).unwrap();
    }
}
