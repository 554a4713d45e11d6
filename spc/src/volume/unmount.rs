//! Unmounts volumes from kubelet's directories, and removes the directories.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result, show};
use crate::host::target::{self, Rules, Walk};
use crate::state::Session;
use crate::unmount::escalate::UnmountMode;
use crate::unmount::foreign::unmount_foreign;
use crate::volume::paths;

/// Unmounts the mount on `dir`, with or without a record: kubelet gave the directory to the driver.
/// Succeeds if nothing is mounted there.
///
/// # Errors
/// The path is not absolute or has `.` or `..` components, or the mount cannot be unmounted.
pub fn unmount(session: &Session, dir: &Path, mode: UnmountMode) -> Result<()> {
    paths::check(dir)?;
    // A recorded target needs no lookup, which a broken file system would not allow.
    if session.ledger.get(dir)?.is_some() {
        return unmount_foreign(session, dir, mode);
    }
    let rules = Rules {
        mkdir: None,
        system: true,
        no_symlink_tail: paths::kubelet_tail(dir),
    };
    let path = PathBuf::from(dir);
    let walked = session
        .host
        .run("looking at the target", move || target::walk(&path, rules))??;
    let (target, mounted) = match walked {
        Walk::Missing(existing, missing) => (existing.join(missing), false),
        Walk::Pinned(pinned, _) => (pinned.path, pinned.mount.is_root),
    };
    if mounted || session.ledger.get(&target)?.is_some() {
        unmount_foreign(session, &target, mode)?;
    }
    Ok(())
}

/// Removes the empty directory of an unmounted volume. Succeeds if it does not exist.
///
/// # Errors
/// The directory is not empty, or another user controls a part of its path.
pub fn remove_directory(session: &Session, dir: &Path) -> Result<()> {
    let fail = || Error::mount(format!("cannot remove {}", show(dir)));
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(fail().because("it is the root directory"));
    };
    let rules = Rules {
        mkdir: None,
        system: true,
        no_symlink_tail: paths::kubelet_tail(dir).saturating_sub(1),
    };
    let (parent, name) = (parent.to_owned(), name.to_owned());
    let remove = move || match target::walk(&parent, rules)? {
        Walk::Missing(..) => Ok(Ok(())),
        Walk::Pinned(pinned, _) => Ok(unlinkat(&pinned.dir, &name, AtFlags::REMOVEDIR)),
    };
    let removed: Result<std::result::Result<(), Errno>> =
        session.host.run("removing the directory", remove)?;
    match removed? {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(fail()
            .because(error)
            .hint("look at what is in it; spc removes no files")),
    }
}
