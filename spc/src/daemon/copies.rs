//! Removal of copies in the container's mount namespace of mounts of the host.

use crate::host::mountinfo;
use crate::host::propagated::{drop_all_copies, drop_copies};
use crate::state::Session;

/// Number of mounts whose mountinfo entries are in memory at the same time.
const BATCH: usize = 64;

/// Detaches the copies of mounts of the host that propagated into this container.
///
/// Each mount is named by its id in mountinfo and its unique id (statx(2), `STATX_MNT_ID_UNIQUE`),
/// or 0 if that is not known. Errors are logged.
pub fn drop_copies_of(session: &Session, mounts: &[(u64, u64)]) {
    for batch in mounts.chunks(BATCH) {
        drop_batch(session, batch.to_vec());
    }
}

fn drop_batch(session: &Session, mounts: Vec<(u64, u64)>) {
    let find = |(id, unique): (u64, u64)| {
        let entry = mountinfo::find(id, unique).ok()??;
        let parent = mountinfo::find(entry.parent, entry.parent_unique).ok()??;
        Some((entry, parent))
    };
    let find_all = move || mounts.into_iter().filter_map(find).collect::<Vec<_>>();
    let found = session.host.run("reading the mounts", find_all);
    if let Err(error) = found.and_then(|found| match &found[..] {
        [(entry, parent)] => drop_copies(entry, parent, entry.unique),
        all => drop_all_copies(all),
    }) {
        tracing::warn!("{error}");
    }
}
