//! A mount in the place of another one that is dead, without a moment in which there is none.

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
use crate::host::mountinfo::{self, Entry};
use crate::host::redirect::Redirect;
use crate::host::target::{MountId, Pinned};
use crate::mount::direct::Detached;
use crate::recovery::repairs::leave_peer;
use crate::state::Session;

/// Linux 6.5.
pub const BENEATH: MoveMountFlags = MoveMountFlags::from_bits_retain(0x200);

/// How the new mount got to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceMethod {
    /// Put beneath the dead one by the kernel (`MOVE_MOUNT_BENEATH`), which then was detached.
    Beneath,
    /// Mounted on a peer of what the dead one is on: propagation puts it beneath whatever is there already.
    Peer,
    /// After the dead one was detached. There was nothing for some microseconds.
    Swap,
}

impl ReplaceMethod {
    /// The word for the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Beneath => "beneath",
            Self::Peer => "peer",
            Self::Swap => "swap",
        }
    }
}

/// Puts a finished mount in the place of the one that is pinned, and detaches that. Gives back what is there now.
///
/// # Errors
/// The target is not what it was, or the kernel refuses.
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
            put_beneath(&new, &pinned)
        }
    };
    let way = match session.host.run("replacing the mount", beneath)? {
        Ok(()) => ReplaceMethod::Beneath,
        // Too old, or the target is on what the kernel calls the root of the namespace.
        Err(Errno::INVAL) if put_on_peer(session, redirect, pinned, &new)? => ReplaceMethod::Peer,
        Err(Errno::INVAL) => ReplaceMethod::Swap,
        Err(error) => return Err(failed(pinned, error)),
    };
    let pinned = Arc::clone(pinned);
    let finish = move || {
        take_top(&pinned)?;
        if way == ReplaceMethod::Swap {
            new.move_to(&pinned.parent, &pinned.name)
                .map_err(|e| failed(&pinned, e))?;
        }
        pinned.top().map_err(|e| failed(&pinned, e))
    };
    Ok((session.host.run("replacing the mount", finish)??, way))
}

fn failed(pinned: &Pinned, error: Errno) -> Error {
    Error::mount(format!(
        "cannot replace the mount on {}",
        show(&pinned.path)
    ))
    .because(error)
}

fn put_beneath(new: &Detached, pinned: &Pinned) -> std::result::Result<(), Errno> {
    let flags =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH | BENEATH;
    move_mount(new, "", &pinned.dir, "", flags)
}

/// Detaches the pinned mount, which nothing covers; run it on the host's thread.
///
/// # Errors
/// Another one covers it, or the errno of umount2(2).
pub fn take_top(pinned: &Pinned) -> Result<()> {
    if !pinned.top().is_ok_and(|top| top == pinned.mount) {
        return Err(failed(pinned, Errno::BUSY));
    }
    detach_at(&pinned.parent, &pinned.name).map_err(|e| failed(pinned, e))
}

/// Detaches what is mounted on a name in a directory.
///
/// # Errors
/// The errno of umount2(2).
pub fn detach_at(dir: impl AsFd, name: &OsStr) -> std::result::Result<(), Errno> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let done = fchdir(dir).and_then(|()| unmount(name, flags));
    // The thread must not keep the directory busy.
    chdir("/").and(done)
}

/// Mounts it on a peer of the mount that the dead one is on, where nothing is in its way. False if there can be no peer.
fn put_on_peer(
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
    // In the container's own table, which is private, for a moment.
    let peer = redirect.peer();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&peer)
        .map_err(fail)?;
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let done = move_mount(&tree, "", CWD, &peer, from)
        .and_then(|()| new.move_to(CWD, peer.join(&pinned.name).as_os_str()));
    leave_peer(redirect);
    done.map_err(|e| failed(pinned, e))?;
    Ok(true)
}

impl Detached {
    /// Attaches it to a name in a directory, or to what covers that.
    ///
    /// # Errors
    /// The errno of move_mount(2).
    fn move_to(&self, dir: impl AsFd, name: &OsStr) -> std::result::Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self, "", dir, name, flags)
    }
}

/// A dead mount whose place was taken, still held, so that no other gets its device number.
pub struct Dead {
    /// What was on the target.
    pub pinned: Arc<Pinned>,
    /// Its entry, when it was there.
    pub entry: Entry,
}
