//! The ledger: one JSON file per mount, in `/run/spc/mounts` on the host.
//!
//! A file is written under another name and renamed, so it is there whole or not at all. `/run` is
//! a tmpfs, so records end with the boot they belong to; where it is not, they say which boot that is.
//! Records are named after a hash of the canonical target, and guarded by one byte of one lock file
//! each (OFD locks, fcntl(2)), which needs no file per lock and is released by the kernel when its
//! holder dies.

mod attachments;
mod changes;
mod damage;
mod lock;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use attachments::{Attachment, Volume};
pub use changes::Changes;
pub use lock::Lock;

use super::Route;
use crate::error::{Class, Error, Result, errno_text, is_shortage};
use crate::host::Host;
use crate::host::target::show;

/// Where the records are, on the host.
pub const DIR: &str = "/run/spc/mounts";

/// How many records are read at once.
const AT_ONCE: usize = 64;

/// How far a mount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Begun; if its maker is dead, it has to be undone.
    Mounting,
    /// Proven.
    Mounted,
    /// Being taken away; if its unmaker is dead, either that has to be finished, or it never began.
    Unmounting,
}

/// What is remembered of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the claim and mark of the processes.
    pub id: String,
    /// How far it has come.
    pub state: State,
    /// Canonical path on the host.
    pub target: String,
    /// The path as it was asked for, on the host.
    pub written: String,
    /// Type that was asked for.
    pub fs_type: String,
    /// Source that was asked for.
    pub source: String,
    /// Types of which the mount table shows one; any if there are none.
    pub shows: Vec<String>,
    /// Source that it shows, if that can be told beforehand.
    pub shows_source: Option<String>,
    /// Options that were asked for.
    pub options: String,
    /// Equal for requests that mean the same mount.
    pub request: String,
    /// How it got to the host.
    pub route: Route,
    /// Mount id, as in mountinfo; 0 until it is proven.
    pub mount_id: u64,
    /// Mount id that is never used again; 0 where the kernel has none.
    pub unique_id: u64,
    /// Id of the mount that the target was pinned on.
    pub on: u64,
    /// Processes that keep it alive, by their ids in the container.
    pub daemon: Vec<i32>,
    /// The client root whose programs made it, and which it needs; none if that was the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Seconds since the epoch.
    pub since: u64,
    /// The id of the request that made it, in logs.
    #[serde(default)]
    pub request_id: String,
    /// The device that was attached for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
    /// The life of the machine that it belongs to, as [`boot`] tells it.
    #[serde(default)]
    pub boot: String,
    /// What it takes to make it once more, should its daemon die; none where there is no daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// What is remembered of a mount so that another can take its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// Where its secrets came from, `KEY=file:PATH` or `KEY=` and what cannot be read twice; never a value.
    pub secrets: Vec<String>,
    /// How often its daemon died and another mount took its place.
    pub repairs: u32,
    /// Name of the claim, and mark of the processes, of the mount that is being made now to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub making: Option<String>,
}

/// An attached device, as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// Its name.
    pub name: String,
    /// What it is reached through.
    pub through: String,
}

impl Record {
    /// Seconds since the mount was made.
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.since)
    }

    /// Whether the machine has not been started anew since: where `/run` outlives that, records do as well, and the ids
    /// in them belong to other mounts. A mount is not forgotten because nobody can tell.
    pub fn is_of_this_boot(&self) -> bool {
        let boot = boot();
        self.boot.is_empty() || boot.is_empty() || self.boot == boot
    }
}

/// The kernel's name for this life of the machine; empty if it does not tell.
pub fn boot() -> &'static str {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let Some(known) = KNOWN.get() else {
        let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        return read.map_or("", |id| KNOWN.get_or_init(|| id.trim_end().to_owned()));
    };
    known
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

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
            .because(&self.cause)
            .hint(match self.shortage {
                true => "try again when there is more of it",
                false => "unmount its target on the host, then remove the file",
            })
    }
}

/// The ledger of one host.
#[derive(Clone)]
pub struct Ledger {
    host: Arc<Host>,
}

impl Ledger {
    /// The ledger of this host; nothing is looked at yet.
    pub fn of(host: Arc<Host>) -> Self {
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
    fn names(&self) -> Result<Vec<u64>> {
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
    fn files(&self, dir: &'static str, extension: &'static str) -> Result<Vec<PathBuf>> {
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
        read.map_err(|e| {
            Error::system(format!("cannot read {dir} on the host")).because(errno_text(e))
        })
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

    fn write(&self, file: PathBuf, what: &impl Serialize) -> Result<()> {
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
                .because(errno_text(e))
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

    fn unlink(&self, file: PathBuf) -> Result<()> {
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
            Error::system(format!("cannot remove {shown} on the host")).because(errno_text(error))
        })
    }
}

fn load(file: &Path) -> std::result::Result<Option<Record>, Corrupt> {
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

fn load_json<T: DeserializeOwned>(file: &Path) -> std::result::Result<Option<T>, Corrupt> {
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

fn file_of(target: &Path) -> PathBuf {
    file_named(hash(target))
}

fn file_named(name: u64) -> PathBuf {
    PathBuf::from(format!("{DIR}/{name:016x}.json"))
}

/// The name of a record's file, whole or begun.
fn name_of(file: &Path) -> Option<u64> {
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
