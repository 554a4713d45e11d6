//! Cache of servers that failed a probe within the last minute, shared by all containers of a host.
//!
//! The cache has one file per server below `/run/spc` on the host; the modification time counts.
//! Such servers are tried last, but not skipped: an outdated entry must not make a mount fail.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::errno_text;
use crate::host::Host;

/// Directory of the cache on the host.
const DIR: &str = "/run/spc/dead";

/// Largest number of entries. Pods may name any servers.
const MAX_ENTRIES: usize = 1000;

/// Time after which an entry expires.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Returns, for each server, the time since it failed a probe, if it did within the last minute.
pub fn ages(host: &Host, servers: &[SocketAddr]) -> Vec<Option<Duration>> {
    let files: Vec<PathBuf> = servers.iter().map(file_of).collect();
    let ages = host.run("reading the cache of dead servers", move || {
        files.iter().map(|file| age(file)).collect()
    });
    // Without the cache, all servers are treated alike.
    ages.unwrap_or_else(|_| vec![None; servers.len()])
}

/// Adds dead servers to the cache, and removes servers that responded. Errors are only logged.
pub fn update(host: &Host, dead: Vec<SocketAddr>, alive: Vec<SocketAddr>) {
    if dead.is_empty() && alive.is_empty() {
        return;
    }
    let updated = host.run("writing the cache of dead servers", move || {
        for server in &alive {
            // Fails for a server that is not in the cache.
            let _ = fs::remove_file(file_of(server));
        }
        if dead.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(DIR)?;
        let mut free = MAX_ENTRIES.saturating_sub(remove_expired()?);
        dead.iter().try_for_each(|server| {
            let is_new = !file_of(server).exists();
            if is_new && free == 0 {
                return Ok(());
            }
            free -= usize::from(is_new);
            let mut file = OpenOptions::new();
            file.write(true).create(true).mode(0o600);
            let file = file.open(file_of(server))?;
            file.set_modified(SystemTime::now())
        })
    });
    if let Ok(Err(error)) = updated {
        tracing::debug!(
            error = errno_text(error),
            "cannot write the cache of dead servers"
        );
    }
}

/// Removes expired entries, and returns the number of the others.
fn remove_expired() -> std::io::Result<usize> {
    let mut current = 0;
    for entry in fs::read_dir(DIR)? {
        let file = entry?.path();
        if age(&file).is_some() {
            current += 1;
        } else {
            // Fails if another command has removed the file.
            let _ = fs::remove_file(file);
        }
    }
    Ok(current)
}

/// Returns the age of an entry, or `None` if there is no entry or it has expired.
fn age(file: &Path) -> Option<Duration> {
    let modified = fs::metadata(file).and_then(|data| data.modified()).ok()?;
    // A time in the future dates from before the clock was set; such an entry has expired.
    let age = SystemTime::now().duration_since(modified).ok()?;
    (age < MAX_AGE).then_some(age)
}

/// Returns the path of a server's entry, such as `/run/spc/dead/192.0.2.1:2049`.
fn file_of(server: &SocketAddr) -> PathBuf {
    Path::new(DIR).join(server.to_string())
}
