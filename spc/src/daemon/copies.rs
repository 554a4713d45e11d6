//! Copies, in the container's table, of mounts that others have made.

use crate::host::mountinfo;
use crate::host::propagated::{drop_all_copies, drop_copies};
use crate::state::Session;

/// How many mounts are looked at together.
const AT_ONCE: usize = 64;

/// Drops the copies that this container's table has of mounts of the host, told by their ids: as in mountinfo, and the one that is
/// never used again, if that is known.
pub fn drop_of(session: &Session, mounts: &[(u64, u64)]) {
    // What the kernel tells of a mount takes room.
    for some in mounts.chunks(AT_ONCE) {
        drop_some(session, some.to_vec());
    }
}

fn drop_some(session: &Session, mounts: Vec<(u64, u64)>) {
    let find = |(id, unique): (u64, u64)| {
        let entry = mountinfo::find(id, unique).ok()??;
        let on = mountinfo::find(entry.parent, entry.parent_unique).ok()??;
        Some((entry, on))
    };
    let look = move || mounts.into_iter().filter_map(find).collect::<Vec<_>>();
    let found = session.host.run("looking at the mounts", look);
    if let Err(error) = found.and_then(|found| match &found[..] {
        [(entry, on)] => drop_copies(entry, on, entry.unique),
        all => drop_all_copies(all),
    }) {
        tracing::warn!("{error}");
    }
}
