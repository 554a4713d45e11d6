//! What is remembered of servers that did not answer: a file for each, below `/run/spc` on the host, whose age counts. They
//! are asked last, and not left out: the memory may be wrong, and must not make a mount fail.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::errno_text;
use crate::host::Host;

/// Where it is, on the host.
const DIR: &str = "/run/spc/dead";

/// How long it counts.
const WHILE: Duration = Duration::from_secs(60);

/// For each server, how long ago it did not answer, if that is not too long ago.
pub fn known(host: &Host, servers: &[SocketAddr]) -> Vec<Option<Duration>> {
    let files: Vec<PathBuf> = servers.iter().map(file_of).collect();
    let ages = host.run("looking which servers were dead", move || {
        files.iter().map(|file| age(file)).collect()
    });
    // Without a memory they are all alike.
    ages.unwrap_or_else(|_| vec![None; servers.len()])
}

/// Remembers these as dead, and those as alive.
pub fn note(host: &Host, dead: Vec<SocketAddr>, alive: Vec<SocketAddr>) {
    if dead.is_empty() && alive.is_empty() {
        return;
    }
    let noted = host.run("noting which servers are dead", move || {
        for server in &alive {
            // Most are not there.
            let _ = fs::remove_file(file_of(server));
        }
        if dead.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(DIR)?;
        sweep()?;
        dead.iter().try_for_each(|server| {
            let mut file = OpenOptions::new();
            file.write(true).create(true).mode(0o600);
            let file = file.open(file_of(server))?;
            file.set_modified(SystemTime::now())
        })
    });
    if let Ok(Err(error)) = noted {
        tracing::debug!(error = errno_text(error), "dead servers are not remembered");
    }
}

/// Removes what does not count any more.
fn sweep() -> std::io::Result<()> {
    for entry in fs::read_dir(DIR)? {
        let file = entry?.path();
        if age(&file).is_none() {
            // Another command may have been faster.
            let _ = fs::remove_file(file);
        }
    }
    Ok(())
}

fn age(file: &Path) -> Option<Duration> {
    let noted = fs::metadata(file).and_then(|data| data.modified()).ok()?;
    // One from the future is from before the clock was set.
    let age = SystemTime::now().duration_since(noted).ok()?;
    (age < WHILE).then_some(age)
}

/// `/run/spc/dead/192.0.2.1:2049`.
fn file_of(server: &SocketAddr) -> PathBuf {
    Path::new(DIR).join(server.to_string())
}
