//! Who asked for what this process does, where that is the `spc` of another root: its root, by which the files that were
//! named are read, its working directory, and its arguments.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::{Error, Result};
use crate::sys;

/// Number of a descriptor of the asker's root.
pub const CALLER_ROOT: &str = "SPC_ASKER";

/// The asker's working directory.
pub const CALLER_CWD: &str = "SPC_CWD";

/// Number of a descriptor that holds the right to use the client root.
pub const IN_USE: &str = "SPC_IN_USE";

/// Who asked for what this process does, from another root.
struct Caller {
    root: OwnedFd,
    cwd: PathBuf,
    /// Held until a record names the client root, or to the end.
    in_use: Mutex<Option<OwnedFd>>,
}

static CALLER: OnceLock<Option<Caller>> = OnceLock::new();

/// Our own arguments, before secrets among them are masked.
static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Takes over what another root's `spc` handed to this process; call it before anything is started.
///
/// # Errors
/// It is there and cannot be taken: whatever we start would have it as well, and hold the client root.
pub fn take_over() -> Result<()> {
    ARGUMENTS.get_or_init(|| std::env::args_os().collect());
    let take = |name: &str| {
        let number = std::env::var(name).ok().and_then(|fd| fd.parse().ok());
        match number.map(sys::take_descriptor) {
            None => Ok(None),
            // The variable has come further than the descriptor.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
            Some(taken) => taken
                .map(Some)
                .map_err(|e| Error::system("cannot take over what was handed on").because(e)),
        }
    };
    let (root, in_use) = (take(CALLER_ROOT)?, take(IN_USE)?);
    CALLER.get_or_init(|| {
        Some(Caller {
            root: root?,
            cwd: std::env::var_os(CALLER_CWD).map_or_else(|| "/".into(), PathBuf::from),
            in_use: Mutex::new(in_use),
        })
    });
    Ok(())
}

fn caller() -> Option<&'static Caller> {
    CALLER.get()?.as_ref()
}

/// Gives up the right to use the client root: a record names it, or it is not needed.
pub fn settle() {
    if let Some(Ok(mut in_use)) = caller().map(|asker| asker.in_use.lock()) {
        *in_use = None;
    }
}

/// The working directory of whoever asked.
///
/// # Errors
/// It cannot be told.
pub fn cwd() -> Result<PathBuf> {
    match caller() {
        Some(asker) => Ok(asker.cwd.clone()),
        None => std::env::current_dir()
            .map_err(|e| Error::system("cannot tell the working directory").because(e)),
    }
}

/// Opens a file that was named by whoever asked, as they see it.
///
/// # Errors
/// It cannot be opened.
pub fn open_named(path: &Path) -> std::io::Result<File> {
    let Some(asker) = caller() else {
        return File::open(path);
    };
    let path = asker.cwd.join(path);
    let file = openat2(
        &asker.root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    Ok(file.into())
}

/// The root of whoever asked, if that is another one than ours.
pub fn root() -> Option<BorrowedFd<'static>> {
    caller().map(|asker| asker.root.as_fd())
}

/// Our own arguments, as they were given.
pub fn arguments() -> &'static [OsString] {
    ARGUMENTS.get().map_or(&[][..], Vec::as_slice)
}
