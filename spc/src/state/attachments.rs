//! Ledger of attached block devices: one file per session in `/run/spc/devices` on the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::hash::hash;
use crate::state::store::{Ledger, load_json};

/// Directory of the attachment files on the host.
const DEVICES: &str = "/run/spc/devices";

/// Record of the devices that share one session, such as an iSCSI login to a target. spc writes the
/// record before it attaches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Key of the session, as in [`Device::session_key`](crate::kinds::block::model::Device).
    #[serde(rename = "through")]
    pub session_key: String,
    /// Paths that were up before spc attached anything. spc uses them and never logs them out.
    pub foreign: Vec<String>,
    /// Sources of all mounts that attached a device here. Detaching derives its commands from them.
    pub sources: Vec<String>,
    /// Attached devices by name.
    pub devices: BTreeMap<String, Volume>,
}

/// Disk and volume identity of an attached device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Kernel name of the disk in use.
    pub disk: String,
    /// Identifiers that the volume reports for itself; empty if it reports none.
    pub ids: Vec<String>,
}

impl Ledger {
    /// Returns the attachment of a session.
    ///
    /// # Errors
    /// Fails if the file cannot be read or parsed.
    pub fn attachment(&self, session_key: &str) -> Result<Option<Attachment>> {
        let file = attachment_file(session_key);
        let read = self
            .host
            .run("reading the ledger", move || load_json(&file))?;
        read.map_err(|bad| bad.error())
    }

    /// Returns all attachments.
    ///
    /// # Errors
    /// Fails if the directory or a file cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let files = self.files(DEVICES, "json")?;
        let read = self.host.run("reading the ledger", move || {
            let all = files.iter().map(|file| load_json(file));
            all.collect::<std::result::Result<Vec<_>, _>>()
        })?;
        let read = read.map_err(|bad| bad.error())?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Writes an attachment, whole or not at all.
    ///
    /// # Errors
    /// Same as [`Ledger::put`].
    pub fn put_attachment(&self, attachment: &Attachment) -> Result<()> {
        self.write(attachment_file(&attachment.session_key), attachment)
    }

    /// Removes the attachment of a session.
    ///
    /// # Errors
    /// Fails if the file cannot be removed.
    pub fn remove_attachment(&self, session_key: &str) -> Result<()> {
        self.unlink(attachment_file(session_key))
    }
}

fn attachment_file(session_key: &str) -> PathBuf {
    PathBuf::from(format!(
        "{DEVICES}/{:016x}.json",
        hash(Path::new(session_key))
    ))
}
