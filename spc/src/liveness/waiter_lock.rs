//! One process waits for each mount, however many want to know whether it answers.
//!
//! A call that a dead file system does not answer may last until the machine is started anew, and no signal ends it. So
//! whoever makes one holds the mount's range of a file on the host meanwhile. The range is as long as the machine's clock was
//! far when the call began, so that others can tell how long it has lasted, and need not make it, too.

use std::io::Result;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::error::{self, Error};
use crate::host::Host;
use crate::host::ranges::Ranges;
use crate::host::target::MountId;

/// On the host.
const FILE: &str = "/run/spc/looks";

/// Each mount has a stretch of the file as long as the clock can be far, in these parts of a second.
const STRETCH: u32 = 32;
const PARTS: i64 = 16;

/// Those who wait for mounts, each of which is known by its id.
pub struct WaiterLock(Ranges);

impl WaiterLock {
    /// Looks who waits.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(host: &Host) -> error::Result<Self> {
        let opened = host.run("looking who waits", || Ranges::open(Path::new(FILE)))?;
        opened.map(Self).map_err(|e| {
            Error::system(format!("cannot use {FILE} on the host"))
                .because(e)
                .hint("make room below /run on the host")
        })
    }

    /// The right to call a mount that may not answer, or how long another has been waiting for it.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn take(&self, mount: u64) -> Result<Option<Duration>> {
        let (start, now) = (start(mount), now());
        loop {
            if self.0.take(start, now)? {
                return Ok(None);
            }
            // It may have got its answer just now.
            if let Some(held) = self.0.held(start, now)? {
                let parts = u64::try_from(now - held.length).unwrap_or(0);
                return Ok(Some(
                    Duration::from_secs(parts) / u32::try_from(PARTS).unwrap_or(1),
                ));
            }
        }
    }

    /// It has answered.
    pub fn leave(&self, mount: u64) {
        // Otherwise it ends with this process.
        let _ = self.0.leave(start(mount), 1 << STRETCH);
    }
}

/// By what a mount is known: the id that is never used again, where there is one.
pub fn key(mount: MountId) -> u64 {
    match mount.unique {
        0 => mount.id,
        unique => unique,
    }
}

/// Unique ids begin above 31 bits and count up: the lower ones tell all mounts apart for as long as a machine runs.
fn start(mount: u64) -> i64 {
    i64::try_from(mount & 0x7fff_ffff).unwrap_or(0) << STRETCH
}

/// The machine's clock, never 0.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    let parts = now.tv_sec * PARTS + now.tv_nsec * PARTS / 1_000_000_000;
    parts.clamp(1, (1 << STRETCH) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_and_the_others_know_since_when() {
        let path = std::env::temp_dir().join(format!("spc-looks-{}", std::process::id()));
        let waiter = || WaiterLock(Ranges::open(&path).unwrap());
        let (first, second) = (waiter(), waiter());
        assert_eq!(first.take(1 << 31 | 5).unwrap(), None);
        std::thread::sleep(Duration::from_millis(200));
        let since = second.take(1 << 31 | 5).unwrap().unwrap();
        let expected = Duration::from_millis(125)..Duration::from_secs(20);
        assert!(expected.contains(&since), "{since:?}");
        // Another mount is another matter.
        assert_eq!(second.take(1 << 31 | 6).unwrap(), None);
        assert_eq!(second.take(1 << 31 | 4).unwrap(), None);
        first.leave(1 << 31 | 5);
        assert_eq!(second.take(1 << 31 | 5).unwrap(), None);
        drop(second);
        assert_eq!(first.take(1 << 31 | 5).unwrap(), None);
        std::fs::remove_file(path).unwrap();
    }
}
