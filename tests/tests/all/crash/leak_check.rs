//! What a mount may leak besides itself, its record, redirect and daemon: files, cgroups, processes
//! of spc that do not end, and open descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::crash::fixture::Scene;
use crate::support::until;

/// Directories of a host where files could be left.
const ON_HOST: [&str; 5] = ["run/spc", "tmp", "var/tmp", "var/log/spc", "dev/shm"];

/// Paths that are created at first use and stay: docs/how-it-works.md names them. The last is
/// libmount's own.
const STAYS: [&str; 5] = [
    "run/spc/queue",
    "run/spc/looks",
    "run/spc/dead",
    "run/spc/devices",
    "run/mount",
];

/// Directories and permanent paths where helpers run: in a container or a client namespace.
const AT_PROGRAMS: [&str; 6] = ["spc", "run", "tmp", "var/tmp", "dev/shm", "etc"];

/// The state while nothing is mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remains {
    files: BTreeSet<PathBuf>,
    cgroups: BTreeSet<PathBuf>,
    /// Processes that run `spc`, and the open files of each.
    open: BTreeMap<i32, Vec<String>>,
}

impl Remains {
    /// Records the present state.
    pub fn of(scene: &Scene<'_>) -> Self {
        let host = &scene.spc.host;
        let mut remains = Self {
            cgroups: host.cgroups().into_iter().collect(),
            ..Self::default()
        };
        let runs = |process: i32| {
            let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
            program.file_name().is_some_and(|name| name == "spc")
        };
        for process in host
            .processes()
            .into_iter()
            .filter(|process| runs(*process))
        {
            remains.open.insert(process, open(process));
        }
        let mut places = vec![(host.pid(), &ON_HOST[..])];
        places.extend(
            remains
                .open
                .keys()
                .map(|process| (*process, &AT_PROGRAMS[..])),
        );
        for (process, directories) in places {
            for directory in directories {
                let directory = format!("/proc/{process}/root/{directory}");
                walk(Path::new(&directory), &mut remains.files);
            }
        }
        remains
    }

    /// Waits for processes that are about to end, and checks that nothing new is left.
    pub fn are_left(&self, scene: &Scene<'_>) -> Result<()> {
        let mut now = Self::default();
        let same = until("nothing else is left", || {
            now = Self::of(scene);
            Ok(now == *self)
        });
        same.with_context(|| {
            let files: Vec<_> = now.files.symmetric_difference(&self.files).collect();
            let cgroups: Vec<_> = now.cgroups.symmetric_difference(&self.cgroups).collect();
            let mut open = now.open.clone();
            open.retain(|process, open| self.open.get(process) != Some(open));
            format!(
                "files: {files:?}, cgroups: {cgroups:?}, open: {open:?}, before: {:?}",
                self.open
            )
        })
    }
}

/// Waits until the daemons of the one mount have exactly these files open.
pub fn daemons_have(scene: &Scene<'_>, expected: &[Vec<String>]) -> Result<()> {
    let mut now = Vec::new();
    until("daemons have open what they need", || {
        now = daemons(scene)?;
        Ok(now == expected)
    })
    .with_context(|| format!("open: {now:?}, and not {expected:?}"))
}

/// Open files of the daemons of all mounts.
pub fn daemons(scene: &Scene<'_>) -> Result<Vec<Vec<String>>> {
    let marked = scene.spc.census(scene.first)?.marked;
    Ok(marked.into_values().flatten().map(open).collect())
}

/// Sorted open files of a process: files by name, other descriptors by kind.
fn open(process: i32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{process}/fd"));
    let links = links.into_iter().flatten().flatten();
    let mut open: Vec<String> = links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .map(|link| {
            let link = link.to_string_lossy().into_owned();
            // The number after the colon differs each time.
            match link.split_once(":[") {
                Some((kind, _)) => kind.to_owned(),
                None => link,
            }
        })
        .collect();
    open.sort();
    open
}

/// Collects everything below a directory that can be read.
fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if STAYS.iter().any(|stays| path.ends_with(stays)) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        }
        found.insert(path);
    }
}
