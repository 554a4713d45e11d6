//! Who keeps a mount busy, told by what procfs has of every process: ids of mounts and names of links. Nothing is
//! asked of the mount itself, which may not answer.

pub mod search;
pub mod sign;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::error::show;
use crate::host::Host;
use crate::host::mountinfo::Entry;
use crate::unmount::holders::search::Search;
use crate::unmount::holders::sign::{Sign, Use};

/// How long to look. What a process has mapped cannot be read while it waits in a page fault.
const LIMIT: Duration = Duration::from_secs(3);

/// How many are named.
const NAMED: usize = 10;

/// A process that uses a mount.
#[derive(Debug, Default)]
struct Holder {
    /// Its name and, if it is in one, its container.
    name: String,
    uses: Vec<(Use, PathBuf)>,
}

/// Who keeps a mount busy.
#[derive(Debug, Default)]
pub struct Found {
    processes: BTreeMap<i32, Holder>,
    /// What is mounted below it: where, and its type.
    pub below: Vec<(PathBuf, String)>,
    loops: Vec<(String, PathBuf)>,
    complete: bool,
}

/// Looks for everybody who uses a mount of the host, or a copy of it that is unmounted with it.
pub fn find(host: &Host, mount: &Entry) -> Found {
    let (said, signs) = channel();
    let mount = mount.clone();
    let search = move || {
        Search {
            mount: &mount,
            said: &said,
        }
        .run();
    };
    // If it does not come to its end, what it has found until then counts.
    let _ = host.run_within("looking for who uses a mount", LIMIT, search);
    let mut found = Found::default();
    for sign in signs.try_iter() {
        found.heed(sign);
    }
    found
}

impl Found {
    fn heed(&mut self, sign: Sign) {
        match sign {
            Sign::Process {
                pid,
                name,
                does,
                with,
            } => {
                let holder = self.processes.entry(pid).or_default();
                holder.name = name;
                // What runs or is open may well be mapped.
                let known = holder
                    .uses
                    .iter()
                    .any(|(used, path)| *path == with && (*used == does || does == Use::HasMapped));
                if !known {
                    holder.uses.push((does, with));
                }
            }
            Sign::Below(target, fs_type) => self.below.push((target, fs_type)),
            Sign::Loop(device, file) => self.loops.push((device, file)),
            Sign::End => self.complete = true,
        }
    }

    /// Nobody was found who does more than wait for an answer.
    pub fn only_wait(&self) -> bool {
        let mut uses = self.processes.values().flat_map(|holder| &holder.uses);
        self.below.is_empty()
            && self.loops.is_empty()
            && uses.all(|(does, _)| *does == Use::WaitsFor)
    }

    /// A line for each that was found, for people.
    pub fn lines(&self) -> Vec<String> {
        let processes = self.processes.iter().map(|(pid, holder)| {
            let uses = holder.uses.iter().take(2);
            let uses: Vec<String> = uses.map(|(does, path)| does.words(path)).collect();
            let more = match holder.uses.len().saturating_sub(2) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("{pid} ({}) {}{more}", holder.name, uses.join(", "))
        });
        let below = self
            .below
            .iter()
            .map(|(target, fs_type)| format!("{} is mounted below it ({fs_type})", show(target)));
        let loops = self
            .loops
            .iter()
            .map(|(device, file)| format!("/dev/{device} is made of {}", show(file)));
        let mut lines: Vec<String> = below.chain(loops).chain(processes).collect();
        if let Some(more) = lines.len().checked_sub(NAMED + 1) {
            lines.truncate(NAMED);
            lines.push(format!("and {} more", more + 1));
        }
        if !self.complete {
            lines.push("there may be more: the search did not come to its end".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_lines_than_can_be_read() {
        let mut found = Found::default();
        for pid in 1..=13 {
            for (does, with) in [
                (Use::HasOpen, "/m/a"),
                (Use::HasMapped, "/m/a"),
                (Use::HasOpen, "/m/b"),
                (Use::WorksIn, "/m"),
            ] {
                let name = "cat".to_owned();
                found.heed(Sign::Process {
                    pid,
                    name,
                    does,
                    with: with.into(),
                });
            }
        }
        found.heed(Sign::End);
        let lines = found.lines();
        assert_eq!(lines.len(), NAMED + 1);
        assert_eq!(lines[0], "1 (cat) has /m/a open, has /m/b open, and 1 more");
        assert_eq!(lines[NAMED], "and 3 more");
    }
}
