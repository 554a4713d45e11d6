//! Finds the active paths of a device in sysfs.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::host::{disk, hostname, service};
use crate::kinds::block::model::{Device, Shows};
use crate::state::Session;

/// A way that is up.
#[derive(Clone, Debug)]
pub(super) struct Up {
    /// Its directory's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What tells it from others; none while it is being brought up or taken down.
    pub(super) marks: Vec<String>,
}

/// The ways to a device that are up; run it on the host's thread.
pub(super) fn ways_up(shows: &Shows) -> Vec<Up> {
    disk::glob(Path::new("/sys"), shows.ways)
        .into_iter()
        .filter(|dir| {
            let mut holds = shows.holds.iter();
            holds.all(|(file, text)| disk::held(dir, file).as_deref() == Some(text))
        })
        .filter_map(|dir| {
            let marks = shows.known_by.iter();
            Some(Up {
                name: dir.file_name()?.to_str()?.to_owned(),
                marks: marks.filter_map(|file| disk::held(&dir, file)).collect(),
                dir,
            })
        })
        .collect()
}

impl Up {
    /// The kernel's name of its disk.
    pub fn disk(&self, shows: &Shows) -> Option<String> {
        let found = disk::glob(&self.dir, &shows.disk).into_iter().next()?;
        Some(found.file_name()?.to_str()?.to_owned())
    }

    /// The number in its name, by which programs know it.
    pub fn number(&self) -> &str {
        self.name.trim_start_matches(|c: char| !c.is_ascii_digit())
    }
}

pub(super) fn look(session: &Session, shows: &Shows) -> Result<Vec<Up>> {
    let shows = shows.clone();
    session
        .host
        .run("looking for a device", move || ways_up(&shows))
}

/// The lock of what devices are reached through; its name may be that of a device.
pub(super) fn through(name: &str) -> String {
    format!("what {name} is reached through")
}

/// What must be there before a device's programs are run.
pub(super) fn ready(
    session: &Session,
    device: &Device,
    asked: Option<&str>,
) -> Result<Option<String>> {
    // Before the daemon, which reads it when it starts.
    let name = match &device.host_name {
        Some(kind) => Some(hostname::place(&session.host, kind, asked)?),
        None => None,
    };
    device.service.map_or(Ok(()), service::ensure)?;
    Ok(name)
}
