//! Notes about volumes. They are on the share, because a DeleteVolume request contains nothing but
//! an id.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, linkat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::provision::class::{Class, OnDelete};
use crate::provision::share::{NOTES, Share, create_beneath, open_beneath};
use crate::provision::{Directory, Failure};

/// Largest size of a note in bytes.
const MAX_SIZE: u64 = 16 * 1024;

/// End of the names of notes.
const SUFFIX: &str = ".json";

/// Note about a volume. Requests with the same note are for the same volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Note {
    /// Name by which the volume was requested.
    pub name: String,
    /// Requested size in bytes; 0 for any.
    pub bytes: u64,
    /// Treatment of the directory when the volume is deleted.
    pub on_delete: OnDelete,
    /// Mode of the new directory.
    pub mode: u32,
    /// User and group of the new directory.
    pub owner: Option<(u32, u32)>,
}

impl Note {
    /// Creates the note for a request.
    pub fn new(name: &str, bytes: u64, class: &Class) -> Self {
        Self {
            name: name.to_owned(),
            bytes,
            on_delete: class.on_delete,
            mode: class.mode,
            owner: class.owner,
        }
    }
}

/// Returns the name of a note's file in [`NOTES`].
fn file_name(directory: &Directory) -> String {
    format!("{}{SUFFIX}", directory.key())
}

/// Returns a function that adds what failed to the cause: `action` on the note about a volume.
fn cannot(action: &str, directory: &Directory) -> impl Fn(std::io::Error) -> Failure {
    move |cause| {
        let path = directory.path();
        Failure::on_share(format!("cannot {action} the note about {path}"), cause)
    }
}

/// Reads the note about a volume, if there is one.
///
/// # Errors
/// The note cannot be read, or is of another version.
pub fn read(share: &Share, directory: &Directory) -> Result<Option<Note>, Failure> {
    let fail = cannot("read", directory);
    let notes = match share.open(NOTES) {
        Ok(notes) => notes,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    // Only the controller may write there. If a pipe is there all the same, the call does not
    // block.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = match open_beneath(&notes, file_name(directory), flags) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    let mut text = String::new();
    File::from(file)
        .take(MAX_SIZE)
        .read_to_string(&mut text)
        .map_err(&fail)?;
    let note = serde_json::from_str(&text);
    note.map(Some)
        .map_err(|error| fail(std::io::Error::other(error.to_string())))
}

/// Writes the note about a new volume. Returns false if a note exists already.
///
/// The note appears as a whole: the text is in a temporary file before linkat(2) gives that file
/// the name of the note.
///
/// # Errors
/// The note cannot be written.
pub fn write(share: &Share, directory: &Directory, note: &Note) -> Result<bool, Failure> {
    let fail = cannot("write", directory);
    let notes = share.open_own(NOTES)?;
    let name = file_name(directory);
    let temporary = format!("{name}.new");
    let remove_temporary = || match unlinkat(&notes, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(fail(error.into())),
    };
    // A call that was killed may have left one.
    remove_temporary()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::from_raw_mode(0o600);
    let file = create_beneath(&notes, &temporary, flags, mode).map_err(|e| fail(e.into()))?;
    let mut file = File::from(file);
    let text = serde_json::to_string(note).map_err(|e| fail(e.into()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(&fail)?;
    let written = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = linkat(CWD, written, &notes, &name, AtFlags::SYMLINK_FOLLOW);
    remove_temporary()?;
    match linked {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(fail(error.into())),
    }
}

/// Removes the note about a volume. Succeeds if there is none.
///
/// # Errors
/// The note cannot be removed.
pub fn remove(share: &Share, directory: &Directory) -> Result<(), Failure> {
    let removed = match share.open(NOTES) {
        Ok(notes) => unlinkat(&notes, file_name(directory), AtFlags::empty()),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(cannot("remove", directory)(error.into())),
    }
}

/// Returns the path of a volume whose directory contains this one, or is inside it; none if there
/// is no such volume.
///
/// # Errors
/// The notes cannot be read.
pub fn nested(share: &Share, directory: &Directory) -> Result<Option<String>, Failure> {
    for above in directory.ancestors() {
        if read(share, &above)?.is_some() {
            return Ok(Some(above.path().to_owned()));
        }
    }
    let fail = |error: Errno| -> Failure {
        Error::mount("cannot list the notes about volumes")
            .because(error)
            .into()
    };
    let notes = share.open_own(NOTES)?;
    let below = format!("{}%", directory.key());
    for entry in Dir::read_from(&notes).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy();
        if name.starts_with(&below)
            && let Some(key) = name.strip_suffix(SUFFIX)
        {
            return Ok(Some(key.replace('%', "/")));
        }
    }
    Ok(None)
}
