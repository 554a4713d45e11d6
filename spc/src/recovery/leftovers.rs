//! Removes placeholder directories, redirects and mounts that a killed command left.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode as Permissions, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};
use crate::host::mountinfo;
use crate::host::redirect::Redirect;
use crate::host::target::mount_id;
use crate::state::Record;

/// The error for processes that could not be looked for.
pub fn unseen(record: &Record, error: std::io::Error) -> Error {
    Error::system(format!("cannot look for processes of {}", record.target)).because(error)
}

/// The mount of a helper that was killed when the shim had carried its call, but had not yet noted the
/// id, or whose claim went with its container. Nothing was on the target before; what is there now,
/// and shows the source that the record expects (its type, where the source cannot be told), is that mount.
///
/// # Errors
/// It cannot be told. A target that is not there, or cannot be walked to, has no such mount.
pub(crate) fn unnoted(record: &Record) -> std::io::Result<Option<(u64, u64)>> {
    let target = Path::new(&record.target);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(None);
    };
    let look = || mount_id(&open(parent, flags, Permissions::empty())?, name);
    let top = match look() {
        Ok(top) => top,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(entry) = mountinfo::find(top.id, top.unique)? else {
        return Ok(None);
    };
    // NFS shows a directory without the slash that may have followed it.
    let plain = |source: &str| source.trim_end_matches('/').to_owned();
    let shown = match &record.shows_source {
        Some(source) => plain(&entry.source) == plain(source),
        None => record.shows.contains(&entry.fs_type),
    };
    let ours = entry.parent == record.parent_mount_id && entry.target == target && shown;
    Ok((top.is_root && ours).then_some((top.id, top.unique)))
}

/// Removes a claim. Nobody would know of what is left of it once no record names it.
///
/// # Errors
/// Something of it cannot be removed.
pub(crate) fn remove_redirect(redirect: &Redirect) -> Result<()> {
    redirect.remove().map_err(cannot_remove)
}

pub(crate) fn cannot_remove((path, error): (PathBuf, std::io::Error)) -> Error {
    Error::system(format!("cannot remove {}", path.display()))
        .because(error)
        .hint("`spc umount` tries again")
}

/// Whether something is mounted on a stand-in.
pub fn is_mount(placeholder: &Path) -> bool {
    mount_id(CWD, placeholder.as_os_str()).is_ok_and(|mount| mount.is_root)
}

/// Takes the container's mount off a stand-in.
///
/// # Errors
/// The errno of umount2(2).
pub fn unmount_placeholder(placeholder: &Path) -> Result<()> {
    unmount(placeholder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| {
        Error::system(format!(
            "cannot unmount the stand-in {}",
            placeholder.display()
        ))
        .because(e)
    })
}
