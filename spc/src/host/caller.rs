//! Caller of this process: the spc process with another root that started it in a client root file
//! system.
//!
//! Files that the request names are opened below the caller's root and working directory.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::{Error, Result};
use crate::sys;

/// Environment variable with the number of a file descriptor of the caller's root.
pub const CALLER_ROOT: &str = "SPC_CALLER_ROOT";

/// Environment variable with the caller's working directory.
pub const CALLER_CWD: &str = "SPC_CWD";

/// Environment variable with the number of a file descriptor that holds the lock of the client root
/// file system.
pub const CLIENT_ROOT_LOCK: &str = "SPC_IN_USE";

/// Caller with another root.
struct Caller {
    root: OwnedFd,
    cwd: PathBuf,
    /// Lock of the client root file system, held until a record names it.
    root_lock: Mutex<Option<OwnedFd>>,
}

static CALLER: OnceLock<Option<Caller>> = OnceLock::new();

/// Arguments of this process, saved before secrets in them are masked.
static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Takes the file descriptors that the caller passed to this process, and saves the arguments. Call
/// before any child is started, because a child would inherit the descriptors and keep the lock.
///
/// # Errors
/// Fails if a passed descriptor cannot be marked close-on-exec.
pub fn take_over() -> Result<()> {
    ARGUMENTS.get_or_init(|| std::env::args_os().collect());
    let take = |name: &str| {
        let number = std::env::var(name).ok().and_then(|fd| fd.parse().ok());
        match number.map(sys::take_inherited_fd) {
            None => Ok(None),
            // A descendant inherits the variable without the descriptor.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
            Some(taken) => taken.map(Some).map_err(|e| {
                Error::system(format!("cannot use the descriptor in {name}")).because(e)
            }),
        }
    };
    let (root, root_lock) = (take(CALLER_ROOT)?, take(CLIENT_ROOT_LOCK)?);
    CALLER.get_or_init(|| {
        Some(Caller {
            root: root?,
            cwd: std::env::var_os(CALLER_CWD).map_or_else(|| "/".into(), PathBuf::from),
            root_lock: Mutex::new(root_lock),
        })
    });
    Ok(())
}

fn caller() -> Option<&'static Caller> {
    CALLER.get()?.as_ref()
}

/// Releases the lock of the client root file system. Call it when a record names that root, or when
/// the process does not need it.
pub fn release_client_root() {
    if let Some(Ok(mut root_lock)) = caller().map(|caller| caller.root_lock.lock()) {
        *root_lock = None;
    }
}

/// Returns the working directory of the caller, or of this process if there is no caller.
///
/// # Errors
/// Fails if getcwd(2) fails.
pub fn cwd() -> Result<PathBuf> {
    match caller() {
        Some(caller) => Ok(caller.cwd.clone()),
        None => std::env::current_dir()
            .map_err(|e| Error::system("cannot read the working directory").because(e)),
    }
}

/// Opens a file that the request names, below the caller's root and working directory.
///
/// # Errors
/// Fails if the file cannot be opened.
pub fn open_named(path: &Path) -> std::io::Result<File> {
    let Some(caller) = caller() else {
        return File::open(path);
    };
    let path = caller.cwd.join(path);
    let file = openat2(
        &caller.root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    Ok(file.into())
}

/// Returns the root of the caller, if it is not the root of this process.
pub fn root() -> Option<BorrowedFd<'static>> {
    caller().map(|caller| caller.root.as_fd())
}

/// Returns the arguments of this process as they were given.
pub fn arguments() -> &'static [OsString] {
    ARGUMENTS.get().map_or(&[][..], Vec::as_slice)
}
