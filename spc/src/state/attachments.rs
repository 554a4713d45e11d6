//! What is attached on the host: a file for each thing that devices are reached through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::state::store::{Ledger, hash, load_json};

/// One file for each [`Attachment`].
const DEVICES: &str = "/run/spc/devices";

/// What is remembered of devices that are reached through the same thing. It is written before anything is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What they are reached through.
    pub through: String,
    /// Ways that somebody else had brought up before: they are used, and never ended.
    pub foreign: Vec<String>,
    /// All sources that were attached; they say how it is undone.
    pub sources: Vec<String>,
    /// The devices that are there, by their names.
    pub devices: BTreeMap<String, Volume>,
}

/// What an attached device turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The disk that is used, by its kernel name.
    pub disk: String,
    /// What the volume is called by itself.
    pub ids: Vec<String>,
}

impl Ledger {
    /// What is attached through this.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn attachment(&self, through: &str) -> Result<Option<Attachment>> {
        let file = attachment_file(through);
        let read = self
            .host
            .run("reading the ledger", move || load_json(&file))?;
        read.map_err(|bad| bad.error())
    }

    /// Everything that is attached.
    ///
    /// # Errors
    /// The directory or a file cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let files = self.files(DEVICES, "json")?;
        let read = self.host.run("reading the ledger", move || {
            let all = files.iter().map(|file| load_json(file));
            all.collect::<std::result::Result<Vec<_>, _>>()
        })?;
        let read = read.map_err(|bad| bad.error())?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Writes what is attached, whole or not at all.
    ///
    /// # Errors
    /// As [`Ledger::put`].
    pub fn put_attachment(&self, attachment: &Attachment) -> Result<()> {
        self.write(attachment_file(&attachment.through), attachment)
    }

    /// Nothing is attached through this any more.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove_attachment(&self, through: &str) -> Result<()> {
        self.unlink(attachment_file(through))
    }
}

fn attachment_file(through: &str) -> PathBuf {
    PathBuf::from(format!("{DEVICES}/{:016x}.json", hash(Path::new(through))))
}
