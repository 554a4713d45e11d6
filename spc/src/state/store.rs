//! The ledger: one JSON file per mount, in `/run/spc/mounts` on the host.
//!
//! A record is written under a temporary name and renamed, so it is complete or absent. Records end
//! with the boot where `/run` is a tmpfs. Each record also names its boot, for hosts where it is
//! not.
//!
//! The name of a record is a hash of the canonical target. A byte of a common lock file guards
//! each record (OFD locks, fcntl(2)), and the kernel releases the lock when its holder dies.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Class, Error, Result, errno_text, is_shortage, show};
use crate::host::Host;
use crate::host::hash::hash;
use crate::state::Record;

pub use crate::state::attachments::{Attachment, Volume};
pub use crate::state::changes::Changes;
pub use crate::state::lock::Lock;

/// Directory of the records, on the host.
pub const DIR: &str = "/run/spc/mounts";

/// Maximum number of records in memory at a time.
const CHUNK: usize = 64;

/// Record that cannot be read.
#[derive(Debug)]
pub struct Corrupt {
    /// File on the host.
    pub file: PathBuf,
    /// Cause of the failure.
    pub cause: String,
    /// Whether spc lacks file descriptors or memory, so that the file itself may be intact.
    pub shortage: bool,
}

impl Corrupt {
    /// Returns the error for a command that needs the record.
    pub fn error(&self) -> Error {
        let file = self.file.display();
        Error::system(format!("the record {file} on the host cannot be read"))
            .because(self.cause.as_str())
            .hint(match self.shortage {
                true => "try again when more memory or file descriptors are free",
                false => "unmount its target on the host, then remove the file",
            })
    }
}

/// Ledger of one host.
#[derive(Clone)]
pub struct Ledger {
    pub(super) host: Arc<Host>,
}

impl Ledger {
    /// Returns the ledger of this host without accessing any file.
    pub fn new(host: Arc<Host>) -> Self {
        Self { host }
    }

    /// Returns the record of a target; none if there is no record.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not a record of this target.
    pub fn get(&self, target: &Path) -> Result<Option<Record>> {
        let file = file_of(target);
        let read = self.host.run("reading the ledger", move || load(&file))?;
        read.map_err(|bad| bad.error())
    }

    /// Returns all records, sorted by target, and the unreadable ones.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub fn all(&self) -> Result<(Vec<Record>, Vec<Corrupt>)> {
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        self.read(&self.names()?, |_, read| match read {
            Ok(record) => records.extend(record),
            Err(corrupt) => bad.push(corrupt),
        })?;
        records.sort_by(|a: &Record, b| a.target.cmp(&b.target));
        Ok((records, bad))
    }

    /// Returns the names of all records, which are the hashes of their targets.
    pub(super) fn names(&self) -> Result<Vec<u64>> {
        let names = self.files(DIR, "json")?;
        Ok(names.iter().filter_map(|file| name_of(file)).collect())
    }

    /// Calls `each` with every named record, or with none where the record is missing. At most 64
    /// records are in memory at a time.
    ///
    /// # Errors
    /// Fails if the host's thread does not respond in time.
    pub fn read(
        &self,
        names: &[u64],
        mut each: impl FnMut(u64, std::result::Result<Option<Record>, Corrupt>),
    ) -> Result<()> {
        for chunk in names.chunks(CHUNK) {
            let files: Vec<PathBuf> = chunk.iter().map(|name| file_named(*name)).collect();
            let read = self.host.run("reading the ledger", move || {
                files.iter().map(|file| load(file)).collect::<Vec<_>>()
            })?;
            for (name, read) in chunk.iter().zip(read) {
                each(*name, read);
            }
        }
        Ok(())
    }

    /// Returns whether any record matches.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub fn has(&self, mut matches: impl FnMut(&Record) -> bool) -> Result<bool> {
        let mut found = false;
        for chunk in self.names()?.chunks(CHUNK) {
            self.read(chunk, |_, read| {
                found |= matches!(&read, Ok(Some(record)) if matches(record));
            })?;
            if found {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the files of a directory of the ledger that have this extension.
    pub(super) fn files(&self, dir: &'static str, extension: &'static str) -> Result<Vec<PathBuf>> {
        let read = self.host.run("reading the ledger", move || {
            let entries = match fs::read_dir(dir) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let files = entries.map(|entry| Ok(entry?.path()));
            files
                .filter(|file: &std::io::Result<PathBuf>| {
                    file.as_ref().map_or(true, |file| {
                        file.extension().is_some_and(|e| e == extension)
                    })
                })
                .collect()
        })?;
        read.map_err(|e| Error::system(format!("cannot read {dir} on the host")).because(e))
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// Fails if the disk is full or the directory is not writable.
    pub fn put(&self, record: &Record) -> Result<()> {
        self.write(file_of(Path::new(&record.target)), record)
    }

    /// Writes a record like [`Ledger::put`], then runs `then` on the host's thread.
    ///
    /// # Errors
    /// Same as [`Ledger::put`], and if `then` takes too long.
    pub fn put_and<T: Send + 'static>(
        &self,
        record: &Record,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.write_and(file_of(Path::new(&record.target)), record, then)
    }

    pub(super) fn write(&self, file: PathBuf, value: &impl Serialize) -> Result<()> {
        self.write_and(file, value, || ())
    }

    fn write_and<T: Send + 'static>(
        &self,
        file: PathBuf,
        value: &impl Serialize,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let text = serde_json::to_vec(value)
            .map_err(|e| Error::new(Class::System, "cannot write a record").because(e))?;
        let shown = file.display().to_string();
        let written = self.host.run("writing the ledger", move || {
            let new = file.with_extension("new");
            let write = || {
                if let Some(dir) = file.parent() {
                    fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o700)
                        .create(dir)?;
                }
                let mut out = OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&new)?;
                out.write_all(&text)?;
                out.sync_all()?;
                fs::rename(&new, &file)
            };
            let done = write().inspect_err(|_| {
                // Best effort: the next write of this record replaces the temporary file.
                let _ = fs::remove_file(&new);
            });
            done.map(|()| then())
        })?;
        written.map_err(|e| {
            Error::system(format!("cannot write the record {shown} on the host"))
                .because(e)
                .hint("make room below /run on the host")
        })
    }

    /// Removes the record of a target. A missing record is not an error.
    ///
    /// # Errors
    /// Fails if the file cannot be removed.
    pub fn remove(&self, target: &Path) -> Result<()> {
        self.unlink(file_of(target))
    }

    pub(super) fn unlink(&self, file: PathBuf) -> Result<()> {
        // The temporary file goes first, so that a failure leaves the record behind for the next
        // try.
        let removed = self.host.run("writing the ledger", move || {
            [file.with_extension("new"), file].into_iter().try_for_each(
                |file| match fs::remove_file(&file) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err((file, error)),
                    _ => Ok(()),
                },
            )
        })?;
        removed.map_err(|(file, error)| {
            let shown = file.display();
            Error::system(format!("cannot remove {shown} on the host")).because(error)
        })
    }
}

pub(super) fn load(file: &Path) -> std::result::Result<Option<Record>, Corrupt> {
    let bad = |cause: String| Corrupt {
        file: file.to_owned(),
        cause,
        shortage: false,
    };
    let Some(record) = load_json::<Record>(file)? else {
        return Ok(None);
    };
    if file_of(Path::new(&record.target)) == file {
        Ok(Some(record))
    } else {
        Err(bad(format!(
            "its target is {}",
            show(record.target.as_ref())
        )))
    }
}

pub(super) fn load_json<T: DeserializeOwned>(
    file: &Path,
) -> std::result::Result<Option<T>, Corrupt> {
    let bad = |cause: String, shortage: bool| Corrupt {
        file: file.to_owned(),
        cause,
        shortage,
    };
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let shortage = is_shortage(&error);
            return Err(bad(errno_text(error), shortage));
        }
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| bad(e.to_string(), false))
}

pub(super) fn file_of(target: &Path) -> PathBuf {
    file_named(hash(target))
}

pub(super) fn file_named(name: u64) -> PathBuf {
    PathBuf::from(format!("{DIR}/{name:016x}.json"))
}

/// Returns the name of a record from its final or temporary file.
pub(super) fn name_of(file: &Path) -> Option<u64> {
    u64::from_str_radix(file.file_stem()?.to_str()?, 16).ok()
}
