//! Proof: what the host's namespace itself says about a new mount.

use std::path::Path;

use crate::error::{Cause, Error, Result, show};
use crate::host::mountinfo::{self, Entry};
use crate::host::target::{MountId, Pinned};
use crate::kinds;

/// A mount that was seen on the host, where it was asked for, with a type it should have.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Its ids.
    pub mount: MountId,
    /// Its entry in the host's mount table.
    pub entry: Entry,
    /// The entry of what it is on.
    pub on: Entry,
}

/// Looks for a new mount on a pinned target; run it on the host's thread. None means there is none.
/// Whoever made it may have told its ids.
///
/// # Errors
/// Something else is mounted there, or a mount was made but not where it was asked for.
pub fn look(pinned: &Pinned, shows: &[String], made: Option<(u64, u64)>) -> Result<Option<Proof>> {
    let fail = |what: &str, cause: Cause| {
        Error::system(format!(
            "cannot prove the mount on {}: {what}",
            show(&pinned.path)
        ))
        .because(cause)
    };
    let top = pinned.top().map_err(|e| fail("statx", e.into()))?;
    if !top.is_root || top.is(pinned.mount.id, pinned.mount.unique) {
        return match made {
            Some((id, unique)) if exists(id, unique)? => Err(moved(&pinned.path)),
            // Or it was taken away again, as by a daemon that has changed its mind.
            _ => Ok(None),
        };
    }
    if let Some((id, unique)) = made
        && !top.is(id, unique)
    {
        return Err(moved(&pinned.path));
    }
    let find = |id: u64, unique: u64| {
        mountinfo::find(id, unique)
            .map_err(|e| fail("mountinfo", e.into()))?
            .ok_or_else(|| fail("mountinfo", format!("no entry with mount id {id}").into()))
    };
    let entry = find(top.id, top.unique)?;
    if entry.parent != pinned.mount.id || entry.target != pinned.path {
        return Err(moved(&pinned.path));
    }
    if !kinds::may_show(shows, &entry.fs_type) {
        return Err(
            Error::mount(format!("wrong mount on {}", show(&pinned.path)))
                .because(format!(
                    "the host shows {} where {} was expected",
                    entry.fs_type,
                    shows.join(" or ")
                ))
                .hint("give the type that the helper mounts to -t"),
        );
    }
    Ok(Some(Proof {
        mount: top,
        on: find(entry.parent, entry.parent_unique)?,
        entry,
    }))
}

fn exists(id: u64, unique: u64) -> Result<bool> {
    let entry = mountinfo::find(id, unique)
        .map_err(|e| Error::system("cannot read the host's mount table").because(e))?;
    Ok(entry.is_some())
}

/// The error for a target that is not where it was.
pub fn moved(path: &Path) -> Error {
    Error::mount(format!("bad target {}: its path was changed meanwhile", show(path)))
        .hint("somebody renames directories on the way to the target; choose one that only root can change")
}
