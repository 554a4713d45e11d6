//! Removes placeholder directories, redirects and mounts that a killed command left.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode as Permissions, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};
use crate::host::mount_id::mount_id;
use crate::host::mountinfo;
use crate::host::redirect::Redirect;
use crate::state::Record;

/// Returns the error for a failed search for the processes of a mount.
pub fn cannot_search(record: &Record, error: std::io::Error) -> Error {
    Error::system(format!("cannot look for processes of {}", record.target)).because(error)
}

/// Returns the ids of a mount that the record does not know. The helper was killed after the shim
/// had redirected its call and before the shim wrote the id, or the redirect is gone with its
/// container.
///
/// Nothing was mounted on the target before. The topmost mount is the wanted one if it shows the
/// expected source, or the expected type where the source is not predictable.
///
/// # Errors
/// Fails if the target or the mount table cannot be read. A missing target has no such mount.
pub(crate) fn find_unrecorded(record: &Record) -> std::io::Result<Option<(u64, u64)>> {
    let target = Path::new(&record.target);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(None);
    };
    let find = || mount_id(&open(parent, flags, Permissions::empty())?, name);
    let top = match find() {
        Ok(top) => top,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(entry) = mountinfo::find(top.id, top.unique)? else {
        return Ok(None);
    };
    // NFS shows a directory without its trailing slash.
    let without_slash = |source: &str| source.trim_end_matches('/').to_owned();
    let is_expected = match &record.expected_source {
        Some(source) => without_slash(&entry.source) == without_slash(source),
        None => record.expected_types.contains(&entry.fs_type),
    };
    let ours = entry.parent == record.parent_mount_id && entry.target == target && is_expected;
    Ok((top.is_root && ours).then_some((top.id, top.unique)))
}

/// Removes a redirect. An error keeps the record, because nothing else names the remaining files.
///
/// # Errors
/// Fails if a file or directory of the redirect cannot be removed.
pub(crate) fn remove_redirect(redirect: &Redirect) -> Result<()> {
    redirect.remove().map_err(cannot_remove)
}

/// Returns the error for a file of a redirect that cannot be removed.
pub(crate) fn cannot_remove((path, error): (PathBuf, std::io::Error)) -> Error {
    Error::system(format!("cannot remove {}", path.display()))
        .because(error)
        .hint("`spc umount` tries again")
}

/// Returns whether a placeholder directory is a mount point.
pub fn is_mount(placeholder: &Path) -> bool {
    mount_id(CWD, placeholder.as_os_str()).is_ok_and(|mount| mount.is_root)
}

/// Detaches the container's mount from a placeholder directory.
///
/// # Errors
/// Fails with the errno of umount2(2).
pub fn unmount_placeholder(placeholder: &Path) -> Result<()> {
    unmount(placeholder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| {
        Error::system(format!(
            "cannot unmount the placeholder directory {}",
            placeholder.display()
        ))
        .because(e)
    })
}
