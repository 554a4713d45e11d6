//! Unmounts a mount that spc did not make, as umount(8) would.

use std::path::Path;

use rustix::mount::UnmountFlags;

use crate::error::{Error, Result, show};
use crate::host::target::{self, Rules};
use crate::host::unmount as host_unmount;
use crate::state::Session;
use crate::unmount;
use crate::unmount::escalate::UnmountMode;

/// Unmounts a target that spc may not have mounted. On a host with spc's `umount.TYPE` helper,
/// umount(8) has no other program for the type.
///
/// # Errors
/// Fails if the mount is busy, or nothing is mounted on the target.
pub fn unmount_foreign(session: &Session, target: &Path, mode: UnmountMode) -> Result<()> {
    if session.ledger.get(target)?.is_some() {
        return unmount::umount(session, target, mode);
    }
    let fail = || Error::mount(format!("cannot unmount {}", show(target)));
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, mode.lazy);
    flags.set(UnmountFlags::FORCE, mode.force);
    let path = target.to_owned();
    let rules = Rules {
        system: true,
        ..Rules::default()
    };
    let done = session.host.run("unmounting", move || {
        let (pinned, _) = target::pin(&path, rules)?;
        let top = pinned.mount;
        // An open descriptor would keep the mount busy.
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
        Some(Ok(false)) | None => Err(Error::mount(format!("{}: not mounted", show(target)))
            .hint("`spc ls` shows what is mounted")),
    }
}
