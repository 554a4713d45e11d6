//! Unmounts a mount that no record names, as umount(8) would.

use std::path::Path;

use rustix::mount::UnmountFlags;

use crate::error::{Error, Result, show};
use crate::host::target::{self, Rules};
use crate::host::unmount as host_unmount;
use crate::state::Session;
use crate::unmount;
use crate::unmount::escalate::UnmountMode;

/// Unmounts what is on a target, whoever mounted it: on a host with our helper there is no other for the type.
///
/// # Errors
/// It is busy, or nothing is mounted there.
pub fn unmount_foreign(session: &Session, target: &Path, how: UnmountMode) -> Result<()> {
    if session.ledger.get(target)?.is_some() {
        return unmount::umount(session, target, how);
    }
    let fail = || Error::mount(format!("cannot unmount {}", show(target)));
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, how.lazy);
    flags.set(UnmountFlags::FORCE, how.force);
    let path = target.to_owned();
    let rules = Rules {
        system: true,
        ..Rules::default()
    };
    let done = session.host.run("unmounting", move || {
        let (pinned, _) = target::pin(&path, rules)?;
        let top = pinned.mount;
        // What is held open is busy.
        drop(pinned);
        if !top.is_root {
            return Ok(None);
        }
        Ok(Some(host_unmount::detach(&path, top.id, top.unique, flags)))
    })??;
    match done {
        Some(Ok(true)) => Ok(()),
        Some(Err(error)) => Err(fail()
            .because(error)
            .hint("end what uses it, or detach it with -l")),
        Some(Ok(false)) | None => {
            Err(Error::mount(format!("{}: not mounted", show(target)))
                .hint("`spc ls` shows what is"))
        }
    }
}
