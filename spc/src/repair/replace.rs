//! Replaces a dead mount by a new one, if possible without a moment in which the target is
//! unmounted.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir};

use crate::error::{Error, Result, show};
use crate::host::mount_id::MountId;
use crate::host::mountinfo::{self, Entry};
use crate::host::redirect::Redirect;
use crate::host::target::Pinned;
use crate::mount::detached::Detached;
use crate::recovery::repairs::leave_peer;
use crate::state::Session;

/// `MOVE_MOUNT_BENEATH` of move_mount(2), since Linux 6.5.
pub const BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// Method by which the new mount replaced the dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceMethod {
    /// `MOVE_MOUNT_BENEATH` put the new mount beneath the dead one, which was then detached.
    Beneath,
    /// The new mount was mounted on a peer of the dead one's parent mount. Propagation put it
    /// beneath the dead mount, which was then detached.
    Peer,
    /// The new mount was attached after the dead one was detached. The target was unmounted for
    /// some microseconds.
    Swap,
}

impl ReplaceMethod {
    /// Returns the word for the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Beneath => "beneath",
            Self::Peer => "peer",
            Self::Swap => "swap",
        }
    }
}

/// Replaces the pinned mount by the new one and detaches the pinned mount. Returns the id of the
/// new mount.
///
/// # Errors
/// Fails if another mount covers the target, or the kernel refuses.
pub fn replace(
    session: &Session,
    redirect: &Redirect,
    pinned: &Arc<Pinned>,
    new: Detached,
) -> Result<(MountId, ReplaceMethod)> {
    let new = Arc::new(new);
    let beneath = {
        let (pinned, new) = (Arc::clone(pinned), Arc::clone(&new));
        move || {
            if !pinned.top().is_ok_and(|top| top == pinned.mount) {
                return Err(Errno::STALE);
            }
            attach_beneath(&new, &pinned)
        }
    };
    let method = match session.host.run("replacing the mount", beneath)? {
        Ok(()) => ReplaceMethod::Beneath,
        // The kernel is older than 6.5, or the parent mount is the root of the mount namespace.
        Err(Errno::INVAL) if attach_on_peer(session, redirect, pinned, &new)? => {
            ReplaceMethod::Peer
        }
        Err(Errno::INVAL) => ReplaceMethod::Swap,
        Err(error) => return Err(failed(pinned, error)),
    };
    let pinned = Arc::clone(pinned);
    let finish = move || {
        take_top(&pinned)?;
        if method == ReplaceMethod::Swap {
            new.move_to(&pinned.parent, &pinned.name)
                .map_err(|e| failed(&pinned, e))?;
        }
        pinned.top().map_err(|e| failed(&pinned, e))
    };
    Ok((session.host.run("replacing the mount", finish)??, method))
}

fn failed(pinned: &Pinned, error: Errno) -> Error {
    Error::mount(format!(
        "cannot replace the mount on {}",
        show(&pinned.path)
    ))
    .because(error)
}

fn attach_beneath(new: &Detached, pinned: &Pinned) -> std::result::Result<(), Errno> {
    let flags =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH | BENEATH;
    move_mount(new, "", &pinned.dir, "", flags)
}

/// Detaches the pinned mount. Run it on the host's thread.
///
/// # Errors
/// Fails if another mount covers the pinned one, or with the errno of umount2(2).
pub fn take_top(pinned: &Pinned) -> Result<()> {
    if !pinned.top().is_ok_and(|top| top == pinned.mount) {
        return Err(failed(pinned, Errno::BUSY));
    }
    detach_at(&pinned.parent, &pinned.name).map_err(|e| failed(pinned, e))
}

/// Detaches the topmost mount on a name in a directory.
///
/// # Errors
/// Fails with the errno of umount2(2).
pub fn detach_at(dir: impl AsFd, name: &OsStr) -> std::result::Result<(), Errno> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let result = fchdir(dir).and_then(|()| unmount(name, flags));
    // The working directory of the thread would keep the directory busy.
    chdir("/").and(result)
}

/// Attaches the new mount to a peer of the dead mount's parent mount, where the target is free.
/// Returns false if the parent mount is not shared.
fn attach_on_peer(
    session: &Session,
    redirect: &Redirect,
    pinned: &Arc<Pinned>,
    new: &Detached,
) -> Result<bool> {
    let pin = Arc::clone(pinned);
    let open = move || -> std::io::Result<_> {
        let Some(dead) = mountinfo::find(pin.mount.id, pin.mount.unique)? else {
            return Ok(None);
        };
        let on = mountinfo::find(dead.parent, dead.parent_unique)?;
        let shared = on.is_some_and(|on| on.peers.is_some());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let empty = OpenTreeFlags::from_bits_retain(AtFlags::EMPTY_PATH.bits());
        shared
            .then(|| Ok(open_tree(&pin.parent, "", flags | empty)?))
            .transpose()
    };
    let fail = |e: std::io::Error| failed(pinned, Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let opened = session.host.run("replacing the mount", open)?;
    let Some(tree) = opened.map_err(fail)? else {
        return Ok(false);
    };
    // The peer is in the container's own mount table, which is private, for a moment only.
    let peer = redirect.peer();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&peer)
        .map_err(fail)?;
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let result = move_mount(&tree, "", CWD, &peer, from)
        .and_then(|()| new.move_to(CWD, peer.join(&pinned.name).as_os_str()));
    leave_peer(redirect);
    result.map_err(|e| failed(pinned, e))?;
    Ok(true)
}

impl Detached {
    /// Attaches the mount to a name in a directory, on top of any mount there.
    ///
    /// # Errors
    /// Fails with the errno of move_mount(2).
    fn move_to(&self, dir: impl AsFd, name: &OsStr) -> std::result::Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self, "", dir, name, flags)
    }
}

/// Dead mount that was replaced. The pinned descriptor keeps the kernel from reusing its device
/// number.
pub struct DeadMount {
    /// Pinned target with the dead mount.
    pub pinned: Arc<Pinned>,
    /// Mountinfo entry of the dead mount before the replacement.
    pub entry: Entry,
}
