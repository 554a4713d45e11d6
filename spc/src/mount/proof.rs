//! Proof of a new mount, read in the host's mount namespace.

use std::path::Path;

use crate::error::{Cause, Error, Result, show};
use crate::host::mount_id::MountId;
use crate::host::mountinfo::{self, Entry};
use crate::host::target::Pinned;
use crate::kinds;

/// New mount, as found in the host's mount table on the requested target and with an expected type.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Mount ids.
    pub mount: MountId,
    /// Entry in the host's mount table.
    pub entry: Entry,
    /// Entry of the mount below it.
    pub parent: Entry,
}

/// Returns the proof of a new mount on a pinned target, or `None` if nothing is mounted there. Must
/// run in the host's mount namespace.
///
/// `made` holds the id and unique id of the mount, where the program that mounted it reported them.
///
/// # Errors
/// Another mount is on the target, the mount is elsewhere, or its type is not one of
/// `expected_types`.
pub fn verify(
    pinned: &Pinned,
    expected_types: &[String],
    made: Option<(u64, u64)>,
) -> Result<Option<Proof>> {
    let fail = |what: &str, cause: Cause| {
        Error::system(format!(
            "cannot verify the mount on {}: {what}",
            show(&pinned.path)
        ))
        .because(cause)
    };
    pinned.wait_for_renames();
    let top = pinned.top().map_err(|e| fail("statx", e.into()))?;
    if !top.is_root || top.matches(pinned.mount.id, pinned.mount.unique) {
        return match made {
            Some((id, unique)) if exists(id, unique)? => Err(target_moved(&pinned.path)),
            // The mount may have been removed again, for example by its daemon.
            _ => Ok(None),
        };
    }
    if let Some((id, unique)) = made
        && !top.matches(id, unique)
    {
        return Err(target_moved(&pinned.path));
    }
    let find = |id: u64, unique: u64| {
        mountinfo::find(id, unique)
            .map_err(|e| fail("mountinfo", e.into()))?
            .ok_or_else(|| fail("mountinfo", format!("no entry with mount id {id}").into()))
    };
    let entry = find(top.id, top.unique)?;
    if entry.parent != pinned.mount.id || entry.target != pinned.path {
        return Err(target_moved(&pinned.path));
    }
    if !kinds::is_expected_type(expected_types, &entry.fs_type) {
        return Err(
            Error::mount(format!("wrong mount on {}", show(&pinned.path)))
                .because(format!(
                    "the host's mount table shows type {}, not {}",
                    entry.fs_type,
                    expected_types.join(" or ")
                ))
                .hint("use -t with the type that the helper mounts"),
        );
    }
    Ok(Some(Proof {
        mount: top,
        parent: find(entry.parent, entry.parent_unique)?,
        entry,
    }))
}

/// Returns whether the host's mount table has a mount with these ids.
fn exists(id: u64, unique: u64) -> Result<bool> {
    let entry = mountinfo::find(id, unique)
        .map_err(|e| Error::system("cannot read the host's mount table").because(e))?;
    Ok(entry.is_some())
}

/// Returns the error for a target whose path leads to another directory than before.
pub fn target_moved(path: &Path) -> Error {
    Error::mount(format!("bad target {}: its path has changed during the mount", show(path)))
        .hint("a directory in the path was renamed; use a target below directories that only root can change")
}
