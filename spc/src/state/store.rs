//! The ledger: one JSON file per mount, in `/run/spc/mounts` on the host.
//!
//! A file is written under another name and renamed, so it is there whole or not at all. `/run` is
//! a tmpfs, so records end with the boot they belong to; where it is not, they say which boot that is.
//! Records are named after a hash of the canonical target, and guarded by one byte of one lock file
//! each (OFD locks, fcntl(2)), which needs no file per lock and is released by the kernel when its
//! holder dies.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Class, Error, Result, errno_text, is_shortage, show};
use crate::host::Host;
use crate::state::Record;

pub use crate::state::attachments::{Attachment, Volume};
pub use crate::state::changes::Changes;
pub use crate::state::lock::Lock;

/// Where the records are, on the host.
pub const DIR: &str = "/run/spc/mounts";

/// How many records are read at once.
const AT_ONCE: usize = 64;

/// A record that cannot be read.
#[derive(Debug)]
pub struct Corrupt {
    /// Its file on the host.
    pub file: PathBuf,
    /// What is wrong with it.
    pub cause: String,
    /// It is not the file that is at fault, but that we have no descriptor or no memory to read it.
    pub shortage: bool,
}

impl Corrupt {
    /// It as an error.
    pub fn error(&self) -> Error {
        let file = self.file.display();
        Error::system(format!("the record {file} on the host cannot be read"))
            .because(self.cause.as_str())
            .hint(match self.shortage {
                true => "try again when there is more of it",
                false => "unmount its target on the host, then remove the file",
            })
    }
}

/// The ledger of one host.
#[derive(Clone)]
pub struct Ledger {
    pub(super) host: Arc<Host>,
}

impl Ledger {
    /// The ledger of this host; nothing is looked at yet.
    pub fn new(host: Arc<Host>) -> Self {
        Self { host }
    }

    /// The record of a target.
    ///
    /// # Errors
    /// The file cannot be read, or is not a record of this target.
    pub fn get(&self, target: &Path) -> Result<Option<Record>> {
        let file = file_of(target);
        let read = self.host.run("reading the ledger", move || load(&file))?;
        read.map_err(|bad| bad.error())
    }

    /// All records, by target, and the files that are none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<(Vec<Record>, Vec<Corrupt>)> {
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        self.read(&self.names()?, |_, read| match read {
            Ok(record) => records.extend(record),
            Err(corrupt) => bad.push(corrupt),
        })?;
        records.sort_by(|a: &Record, b| a.target.cmp(&b.target));
        Ok((records, bad))
    }

    /// The names of all records, as [`hash`] makes them of their targets.
    pub(super) fn names(&self) -> Result<Vec<u64>> {
        let names = self.files(DIR, "json")?;
        Ok(names.iter().filter_map(|file| name_of(file)).collect())
    }

    /// The records with these names, one by one, with none for those that are not there: of all there may be, few are in
    /// memory at a time.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn read(
        &self,
        names: &[u64],
        mut each: impl FnMut(u64, std::result::Result<Option<Record>, Corrupt>),
    ) -> Result<()> {
        for some in names.chunks(AT_ONCE) {
            let files: Vec<PathBuf> = some.iter().map(|name| file_named(*name)).collect();
            let read = self.host.run("reading the ledger", move || {
                files.iter().map(|file| load(file)).collect::<Vec<_>>()
            })?;
            for (name, read) in some.iter().zip(read) {
                each(*name, read);
            }
        }
        Ok(())
    }

    /// Whether there is a record like that.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn has(&self, mut like: impl FnMut(&Record) -> bool) -> Result<bool> {
        let mut found = false;
        for some in self.names()?.chunks(AT_ONCE) {
            self.read(some, |_, read| {
                found |= matches!(&read, Ok(Some(record)) if like(record));
            })?;
            if found {
                break;
            }
        }
        Ok(found)
    }

    /// The ledger's files with this extension.
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
    /// The disk is full, or the directory cannot be written.
    pub fn put(&self, record: &Record) -> Result<()> {
        self.write(file_of(Path::new(&record.target)), record)
    }

    /// As [`Ledger::put`], and goes on with this on the host's thread once that is done.
    ///
    /// # Errors
    /// As [`Ledger::put`], or that takes too long.
    pub fn put_and<T: Send + 'static>(
        &self,
        record: &Record,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.write_and(file_of(Path::new(&record.target)), record, then)
    }

    pub(super) fn write(&self, file: PathBuf, what: &impl Serialize) -> Result<()> {
        self.write_and(file, what, || ())
    }

    fn write_and<T: Send + 'static>(
        &self,
        file: PathBuf,
        what: &impl Serialize,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let text = serde_json::to_vec(what)
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
                // Best effort: the next write of this record replaces it.
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

    /// Removes the record of a target; what is not there is not missed.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, target: &Path) -> Result<()> {
        self.unlink(file_of(target))
    }

    pub(super) fn unlink(&self, file: PathBuf) -> Result<()> {
        // One that was begun and could not be finished or removed goes first: the record still tells of it.
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
        Err(bad(format!("it is about {}", show(record.target.as_ref()))))
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

/// The name of a record's file, whole or begun.
pub(super) fn name_of(file: &Path) -> Option<u64> {
    u64::from_str_radix(file.file_stem()?.to_str()?, 16).ok()
}

/// FNV-1a, 64 bits: the same in every version, unlike the standard library's hasher.
pub fn hash(target: &Path) -> u64 {
    target
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(Path::new("")), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
    }
}
