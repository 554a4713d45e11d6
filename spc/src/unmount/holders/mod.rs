//! Finds the processes, mounts and loop devices that keep a mount busy.
//!
//! The search reads procfs and sysfs only: mount ids and link names. The mount itself is not
//! touched, because it may not respond. A process may belong to a user who makes reads of its files
//! in procfs block, or their content long. So the search runs in a subprocess, with limits on time
//! and length.

pub mod finding;
pub mod search;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::error::{Cause, Error, Result};
use crate::host::mountinfo::{self, Entry};
use crate::host::{Settings, namespace};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::unmount::holders::finding::{Finding, Use};
use crate::unmount::holders::search::Search;

/// Time limit of the search. The maps of a process cannot be read while it waits in a page fault.
const LIMIT: Duration = Duration::from_secs(3);

/// Largest number of uses that are kept for one process.
const MAX_USES: usize = 100;

/// Largest number of holders in an error.
const MAX_LINES: usize = 10;

/// Largest number of uses of one process in an error.
const MAX_SHOWN_USES: usize = 2;

/// Process that uses a mount.
#[derive(Debug, Default)]
struct Holder {
    /// Name of the process and, if any, its container.
    name: String,
    /// Uses of the mount, each with the path that is used.
    uses: Vec<(Use, String)>,
}

/// Holders of a busy mount.
#[derive(Debug, Default)]
pub struct Holders {
    /// Processes by pid.
    processes: BTreeMap<i32, Holder>,
    /// Mounts below the mount: target and type.
    pub below: Vec<(String, String)>,
    /// Loop devices: name and backing file.
    loops: Vec<(String, String)>,
    /// Whether the search finished.
    complete: bool,
}

/// Finds the holders of a mount of the host, and of the copies that are unmounted with it.
///
/// If the search exceeds its limit, its findings so far are returned.
pub fn find(mount: &Entry) -> Holders {
    let mut holders = Holders::default();
    let ids = [mount.id, mount.unique].map(|id| id.to_string());
    let cancel = CancelToken::at(Instant::now() + LIMIT);
    match Subprocess::spawn_detached(&["holders", &ids[0], &ids[1]], &[]) {
        Ok(mut child) => {
            while let Ok(Reply::Line(line)) = child.line(cancel) {
                if let Ok(finding) = serde_json::from_str(&line) {
                    holders.add(finding);
                }
            }
        }
        Err(error) => tracing::warn!("{error}"),
    }
    holders
}

/// Searches for the holders of the mount with these ids, and prints each finding as a line of JSON.
/// Runs in a subprocess, which the caller abandons if a thread of it stays blocked.
///
/// # Errors
/// The host's mount namespace cannot be entered or its mount table cannot be read.
pub fn child(id: u64, unique: u64) -> Result<()> {
    let fail = |why: Cause| Error::system("cannot search for the users of a mount").because(why);
    let (_, host) = namespace::find(&Settings::read()?)?;
    // The threads that start from here on are in the host's mount namespace as well.
    namespace::enter(&host).map_err(|e| fail(e.into()))?;
    let Some(mount) = mountinfo::find(id, unique).map_err(|e| fail(e.into()))? else {
        return Ok(());
    };
    let (sender, findings) = channel();
    let search = Arc::new(Search {
        mount,
        sender,
        limit: LIMIT,
    });
    std::thread::Builder::new()
        .spawn(move || search.run())
        .map_err(|e| fail(e.into()))?;
    let deadline = Instant::now() + LIMIT;
    while let Ok(finding) =
        findings.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        let mut line = serde_json::to_vec(&finding).map_err(|e| fail(e.into()))?;
        line.push(b'\n');
        std::io::stdout()
            .write_all(&line)
            .map_err(|e| fail(e.into()))?;
    }
    Ok(())
}

impl Holders {
    /// Adds a finding of the subprocess.
    fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Process {
                pid,
                name,
                used_as,
                path,
            } => {
                let holder = self.processes.entry(pid).or_default();
                holder.name = name;
                // A process maps its own program and often the files that it has open.
                let is_known = holder.uses.iter().any(|(used, known)| {
                    *known == path && (*used == used_as || used_as == Use::HasMapped)
                });
                if !is_known && holder.uses.len() < MAX_USES {
                    holder.uses.push((used_as, path));
                }
            }
            Finding::Below(target, fs_type) => self.below.push((target, fs_type)),
            Finding::Loop(device, file) => self.loops.push((device, file)),
            Finding::End => self.complete = true,
        }
    }

    /// Returns whether all holders only wait for a lookup on the mount.
    pub fn only_wait(&self) -> bool {
        let mut uses = self.processes.values().flat_map(|holder| &holder.uses);
        self.below.is_empty()
            && self.loops.is_empty()
            && uses.all(|(used_as, _)| *used_as == Use::WaitsFor)
    }

    /// Returns one line per holder, for the user.
    pub fn lines(&self) -> Vec<String> {
        let processes = self.processes.iter().map(|(pid, holder)| {
            let uses = holder.uses.iter().take(MAX_SHOWN_USES);
            let uses: Vec<String> = uses.map(|(used_as, path)| used_as.words(path)).collect();
            let more = match holder.uses.len().saturating_sub(MAX_SHOWN_USES) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("{pid} ({}) {}{more}", holder.name, uses.join(", "))
        });
        let below = self
            .below
            .iter()
            .map(|(target, fs_type)| format!("{target} is mounted below it ({fs_type})"));
        let loops = self
            .loops
            .iter()
            .map(|(device, file)| format!("loop device /dev/{device} uses {file}"));
        let mut lines: Vec<String> = below.chain(loops).chain(processes).collect();
        if let Some(more) = lines.len().checked_sub(MAX_LINES + 1) {
            lines.truncate(MAX_LINES);
            lines.push(format!("and {} more", more + 1));
        }
        if !self.complete {
            lines.push("there may be more: the search did not finish".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_holders_are_cut() {
        let mut holders = Holders::default();
        for pid in 1..=13 {
            for (used_as, path) in [
                (Use::HasOpen, "/m/a"),
                (Use::HasMapped, "/m/a"),
                (Use::HasOpen, "/m/b"),
                (Use::WorksIn, "/m"),
            ] {
                let name = "cat".to_owned();
                holders.add(Finding::Process {
                    pid,
                    name,
                    used_as,
                    path: path.into(),
                });
            }
        }
        holders.add(Finding::End);
        let lines = holders.lines();
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines[0], "1 (cat) has /m/a open, has /m/b open, and 1 more");
        assert_eq!(lines[MAX_LINES], "and 3 more");
    }
}
