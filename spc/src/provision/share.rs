//! Root of a mounted backend, and its directories. Nothing here follows a link or enters another
//! mount.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::fs::{XattrFlags, fchmod, fchown, fgetxattr, fsetxattr, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use crate::provision::Failure;

/// Directory of the controller at the root of a backend. No volume can have its name.
pub const OWN: &str = ".spc";

/// Directory with a note about each volume.
pub const NOTES: &str = ".spc/volumes";

/// Directory in which new volumes are prepared.
pub const NEW: &str = ".spc/new";

/// Directory of volumes that are being removed.
pub const TRASH: &str = ".spc/trash";

/// Directory of archived volumes.
pub const ARCHIVE: &str = ".spc/archive";

/// Capabilities of the controller beside those that every mount needs.
const CAPABILITIES: [(CapabilitySet, &str, &str); 3] = [
    (
        CapabilitySet::DAC_OVERRIDE,
        "DAC_OVERRIDE",
        "to remove what users of volumes have made",
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

/// Attribute of a CephFS directory that limits its size in bytes.
const CEPH_QUOTA: &CStr = c"ceph.quota.max_bytes";

/// Flags to open a directory for reading.
pub const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Opens a path beneath a directory: without links, and on the same mount.
///
/// # Errors
/// Returns the errno of openat2(2): ELOOP for a link, EXDEV for another mount.
pub fn open_beneath(dir: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_name(dir, path, flags, Mode::empty())
}

/// Does the same as [`open_beneath`], with the mode of a new file.
pub fn open_name(
    dir: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel asks for another try if something was renamed meanwhile.
    for _ in 0..16 {
        match openat2(&dir, path.as_cow_c_str()?, flags, mode, inside) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// Returns name and purpose of a capability that the controller lacks.
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
    /// Returns the share with this root directory.
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// The path is missing, or leads through a link or another mount.
    pub fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, path, DIRECTORY)
    }

    /// Returns whether a directory has this path.
    ///
    /// # Errors
    /// The path is that of something else, cannot be looked up, or leads through a link or another
    /// mount.
    pub fn exists(&self, path: &str) -> Result<bool, Failure> {
        match open_beneath(&self.root, path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Failure::on_share(format!("cannot look at {path}"), error)),
        }
    }

    /// Opens a directory, after it was made if it was missing. Those above it exist.
    ///
    /// # Errors
    /// The directory can neither be made nor opened.
    pub fn make(&self, path: &str, mode: u32) -> Result<OwnedFd, Failure> {
        let fail =
            |error: Errno| Failure::on_share(format!("cannot make the directory {path}"), error);
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent = self.open(parent).map_err(fail)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fail(error)),
        }
        open_beneath(&parent, name, DIRECTORY).map_err(fail)
    }

    /// Opens one of the controller's own directories, after it was made if it was missing.
    ///
    /// # Errors
    /// The directory can neither be made nor opened.
    pub fn own(&self, path: &str) -> Result<OwnedFd, Failure> {
        match self.open(path) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT) => {
                self.make(OWN, 0o700)?;
                self.make(path, 0o700)
            }
            Err(error) => Err(Failure::on_share(format!("cannot open {path}"), error)),
        }
    }

    /// Removes an empty directory; it may be gone.
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

/// Gives a directory its mode and owner.
///
/// # Errors
/// The server refuses them.
pub fn set_access(dir: impl AsFd, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    // First, while the group is the controller's own: set-group-ID needs another capability later.
    fchmod(&dir, Mode::from_raw_mode(mode))
        .map_err(|e| Failure::on_share("cannot give the directory its mode", e))?;
    if let Some((user, group)) = owner {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        fchown(&dir, Some(user), Some(group))
            .map_err(|e| Failure::on_share("cannot give the directory its owner", e))?;
    }
    Ok(())
}

/// Returns the limit of a CephFS directory in bytes; 0 if it has none.
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

/// Limits a CephFS directory to a number of bytes.
///
/// # Errors
/// The client may not set quotas.
pub fn set_ceph_quota(dir: impl AsFd, bytes: u64) -> Result<(), Failure> {
    let set = fsetxattr(
        &dir,
        CEPH_QUOTA,
        bytes.to_string().as_bytes(),
        XattrFlags::empty(),
    );
    set.map_err(|error| {
        let mut failure = Failure::on_share("cannot set the quota of the directory", error);
        failure.error = failure.error.hint(
            "the user of the backend needs the capability `p` of the metadata server: ceph auth caps client.USER mds 'allow rwp'",
        );
        failure
    })
}
