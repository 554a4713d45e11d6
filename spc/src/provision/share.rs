//! Root of a mounted backend, and its directories. No call follows a link or enters another mount.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::fs::{XattrFlags, fchmod, fchown, fgetxattr, fsetxattr, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::Error;
use crate::provision::Failure;

/// Directory of the controller at the root of a backend. Names of volumes do not begin with a dot.
pub const OWN: &str = ".spc";

/// Directory with a note about each volume.
pub const NOTES: &str = ".spc/volumes";

/// Directory in which new volumes are prepared.
pub const NEW: &str = ".spc/new";

/// Directory to which a volume is moved before it is removed.
pub const TRASH: &str = ".spc/trash";

/// Directory of archived volumes.
pub const ARCHIVE: &str = ".spc/archive";

/// Capabilities of the controller beside those that every mount needs, with name and purpose.
const CAPABILITIES: [(CapabilitySet, &str, &str); 3] = [
    (
        CapabilitySet::DAC_OVERRIDE,
        "DAC_OVERRIDE",
        "to remove files of pods",
    ),
    (
        CapabilitySet::FOWNER,
        "FOWNER",
        "to remove files from directories with the sticky bit",
    ),
    (
        CapabilitySet::CHOWN,
        "CHOWN",
        "to give directories their owner",
    ),
];

/// Number of lookups of one path that races with renames.
const MAX_LOOKUPS: usize = 16;

/// Attribute of a CephFS directory that limits its size in bytes.
const CEPH_QUOTA: &CStr = c"ceph.quota.max_bytes";

/// Flags to open a directory for reading.
pub const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Opens a path beneath a directory, on the same mount and without following links.
///
/// # Errors
/// Returns the errno of openat2(2): ELOOP for a link, EXDEV for another mount.
pub fn open_beneath(dir: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    create_beneath(dir, path, flags, Mode::empty())
}

/// Opens like [`open_beneath`], and gives `mode` to a file that the flags create.
///
/// # Errors
/// Returns the errno of openat2(2), as [`open_beneath`] does.
pub fn create_beneath(
    dir: impl AsFd,
    path: impl Arg,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // EAGAIN means that a rename(2) anywhere on the machine may have raced with the lookup.
    for _ in 0..MAX_LOOKUPS {
        match openat2(&dir, path.as_cow_c_str()?, flags, mode, inside) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// Returns name and purpose of the first capability that the controller lacks.
///
/// # Errors
/// capget(2) fails.
pub fn missing_capability() -> Result<Option<(&'static str, &'static str)>, Errno> {
    let effective = capabilities(None)?.effective;
    let missing = |(bit, ..): &&(CapabilitySet, _, _)| !effective.contains(*bit);
    let missing = CAPABILITIES.iter().find(missing);
    Ok(missing.map(|(_, name, purpose)| (*name, *purpose)))
}

/// Root of a mounted backend.
#[derive(Debug)]
pub struct Share {
    root: OwnedFd,
}

impl Share {
    /// Creates the share with a root directory.
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// Returns the errno of openat2(2): ENOENT for a missing directory, ELOOP for a link, EXDEV for
    /// another mount.
    pub fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, path, DIRECTORY)
    }

    /// Returns whether a directory exists.
    ///
    /// # Errors
    /// The path is not a directory, cannot be looked up, or leads through a link or another mount.
    pub fn exists(&self, path: &str) -> Result<bool, Failure> {
        match open_beneath(&self.root, path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Failure::on_share(format!("cannot look at {path}"), error)),
        }
    }

    /// Opens a directory, and creates it if it is missing. Its parent directory must exist.
    ///
    /// # Errors
    /// The directory can neither be created nor opened.
    pub fn open_or_create(&self, path: &str, mode: u32) -> Result<OwnedFd, Failure> {
        let fail =
            |error: Errno| Failure::on_share(format!("cannot create the directory {path}"), error);
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent = self.open(parent).map_err(fail)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fail(error)),
        }
        open_beneath(&parent, name, DIRECTORY).map_err(fail)
    }

    /// Opens one of the controller's own directories, and creates it if it is missing.
    ///
    /// # Errors
    /// The directory can neither be created nor opened.
    pub fn open_own(&self, path: &str) -> Result<OwnedFd, Failure> {
        match self.open(path) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT) => {
                self.open_or_create(OWN, 0o700)?;
                self.open_or_create(path, 0o700)
            }
            Err(error) => Err(Failure::on_share(format!("cannot open {path}"), error)),
        }
    }

    /// Removes an empty directory. Succeeds if it does not exist.
    ///
    /// # Errors
    /// The directory is not empty, or cannot be removed.
    pub fn remove_empty(&self, parent: &str, name: &str) -> Result<(), Failure> {
        let parent = match self.open(parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Failure::on_share(format!("cannot open {parent}"), error)),
        };
        match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Failure::on_share(format!("cannot remove {name}"), error)),
        }
    }
}

/// Sets the mode of a directory, and its owner if there is one.
///
/// # Errors
/// The server refuses them.
pub fn set_access(dir: impl AsFd, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    // The mode comes first: for a directory of another group, set-group-ID needs CAP_FSETID.
    fchmod(&dir, Mode::from_raw_mode(mode))
        .map_err(|e| Failure::on_share("cannot give the directory its mode", e))?;
    if let Some((user, group)) = owner {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        fchown(&dir, Some(user), Some(group))
            .map_err(|e| Failure::on_share("cannot give the directory its owner", e))?;
    }
    Ok(())
}

/// Returns the quota of a CephFS directory in bytes; 0 if it has none.
///
/// # Errors
/// The attribute cannot be read.
pub fn ceph_quota(dir: impl AsFd) -> Result<u64, Failure> {
    let fail = |error: Errno| Failure::on_share("cannot read the quota of the directory", error);
    let mut text = [0; 32];
    match fgetxattr(&dir, CEPH_QUOTA, &mut text) {
        Ok(length) => {
            let digits = text.get(..length).unwrap_or_default();
            let number = std::str::from_utf8(digits).ok();
            number
                .and_then(|digits| digits.trim_end_matches('\0').parse().ok())
                .ok_or_else(|| fail(Errno::INVAL))
        }
        Err(Errno::NODATA) => Ok(0),
        Err(error) => Err(fail(error)),
    }
}

/// Sets the quota of a CephFS directory in bytes; 0 removes it.
///
/// # Errors
/// The client may not set quotas, or the file system is not CephFS.
pub fn set_ceph_quota(dir: impl AsFd, bytes: u64) -> Result<(), Failure> {
    let text = bytes.to_string();
    fsetxattr(&dir, CEPH_QUOTA, text.as_bytes(), XattrFlags::empty()).map_err(|error| {
        Error::mount("cannot set the quota of the directory")
            .because(error)
            .hint(
                "the user of the backend needs the capability `p` of the metadata server: \
                 ceph auth caps client.USER mds 'allow rwp'",
            )
            .into()
    })
}
