//! Finds the active paths of a device in sysfs.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::host::{disk, hostname, service};
use crate::kinds::block::model::{Device, SysfsLayout};
use crate::state::Session;

/// Path that is up, such as a logged-in iSCSI session.
#[derive(Clone, Debug)]
pub(super) struct ActivePath {
    /// Name of the sysfs directory.
    pub name: String,
    /// Path of that directory.
    pub dir: PathBuf,
    /// Values that identify the path; empty while it is being brought up or shut down.
    pub(super) key: Vec<String>,
}

/// Returns the active paths to a device. Run it on the host's thread.
pub(super) fn active_paths(sysfs: &SysfsLayout) -> Vec<ActivePath> {
    disk::glob(Path::new("/sys"), sysfs.path_dirs)
        .into_iter()
        .filter(|dir| {
            let mut attributes = sysfs.attributes.iter();
            attributes.all(|(file, text)| disk::read_first(dir, file).as_deref() == Some(text))
        })
        .filter_map(|dir| {
            let key = sysfs.key_attributes.iter();
            Some(ActivePath {
                name: dir.file_name()?.to_str()?.to_owned(),
                key: key
                    .filter_map(|file| disk::read_first(&dir, file))
                    .collect(),
                dir,
            })
        })
        .collect()
}

impl ActivePath {
    /// Returns the kernel name of its disk; none if there is no disk yet.
    pub fn disk(&self, sysfs: &SysfsLayout) -> Option<String> {
        let found = disk::glob(&self.dir, &sysfs.disk).into_iter().next()?;
        Some(found.file_name()?.to_str()?.to_owned())
    }

    /// Returns the number in its name, which programs expect as an argument.
    pub fn number(&self) -> &str {
        self.name.trim_start_matches(|c: char| !c.is_ascii_digit())
    }
}

/// Returns the active paths to a device, read on the host's thread.
///
/// # Errors
/// Fails if the host's thread does not respond in time.
pub(super) fn find_active(session: &Session, sysfs: &SysfsLayout) -> Result<Vec<ActivePath>> {
    let sysfs = sysfs.clone();
    session
        .host
        .run("looking for active paths", move || active_paths(&sysfs))
}

/// Returns the name of a session's lock. The prefix keeps it apart from the lock of a device with
/// the same name.
pub(super) fn session_lock_name(session_key: &str) -> String {
    format!("the session {session_key}")
}

/// Provides the host name and the service that a device's programs need. Returns the host name.
///
/// # Errors
/// Fails if the host name is invalid or the service cannot be started.
pub(super) fn prepare_programs(
    session: &Session,
    device: &Device,
    requested_name: Option<&str>,
) -> Result<Option<String>> {
    // The daemon reads the host name when it starts.
    let name = match &device.host_name {
        Some(kind) => Some(hostname::provide(&session.host, kind, requested_name)?),
        None => None,
    };
    device.service.map_or(Ok(()), service::ensure)?;
    Ok(name)
}
