//! What a child does once it is in the host's namespace: pin the target, make the real call, prove it.

use core::ffi::{CStr, c_int};

use crate::area::Work;
use crate::call::Call;
use crate::claim::Claimed;
use crate::cross::{Crossing, Step};
use crate::mounts::kind_of_mount;
use crate::next;
use crate::policy::{Change, Reason, names_type, split_last};
use crate::sys::{self, CWD, Errno, Fd, Result, mount_id};
use crate::walk;

/// The target's path leads to another place than what was pinned or mounted on.
const ELSEWHERE: Errno = Errno::STALE;

const EMPTY: &CStr = c"";
/// From a root that is mounted on, this leads to what is on top of it.
const TOP: &CStr = c"/..";

/// Makes the call on the host.
#[inline(never)]
pub fn make(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<usize> {
    c.outcome.step = Step::Pin;
    if c.change == Change::Unmount {
        go_to_unmount(c, claimed)?;
        return unmount_here(c);
    }
    if let Call::MountSetattr { dir, .. } = *c.call
        && c.on_host
    {
        return set_attributes(c, dir);
    }
    let pin = pin(c, claimed)?;
    match *c.call {
        Call::OpenTree { flags, .. } => {
            c.outcome.step = Step::Call;
            next::open_tree(c.via, pin.raw(), EMPTY.as_ptr(), flags | sys::AT_EMPTY_PATH)
        }
        Call::MountSetattr { .. } => set_attributes(c, pin.raw()),
        _ => change_mounts(c, claimed, &pin),
    }
}

#[inline(never)]
fn set_attributes(c: &mut Crossing<'_>, dir: c_int) -> Result<usize> {
    let Call::MountSetattr {
        flags,
        attributes,
        size,
        ..
    } = *c.call
    else {
        return Err(Errno::INVAL);
    };
    c.outcome.step = Step::Call;
    next::mount_setattr(
        c.via,
        dir,
        EMPTY.as_ptr(),
        flags | sys::AT_EMPTY_PATH,
        attributes,
        size,
    )
}

/// Holds the target, so that what happens to its path meanwhile does not matter.
#[inline(never)]
fn pin(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<Fd> {
    if c.work.host.as_bytes() == b"/" {
        c.work.host.set(TOP.to_bytes());
    }
    let path = c.work.host.as_cstr();
    let Some(claimed) = claimed else {
        return sys::pin(path, 0, sys::RESOLVE_NO_MAGICLINKS);
    };
    let pin = sys::pin(
        path,
        0,
        sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS,
    )?;
    if c.change.attaches() {
        let inode = sys::statx(pin.raw(), EMPTY, libc::STATX_INO).map(|stat| stat.inode);
        if inode != Ok(claimed.inode) {
            return Err(ELSEWHERE);
        }
    } else {
        let made = claimed.read_mount(c.work)?;
        is_that_mount(made, pin.raw(), EMPTY)?;
    }
    Ok(pin)
}

/// EINVAL unless the topmost mount there is the one with these ids.
#[inline(never)]
fn is_that_mount((id, unique): (u64, u64), dir: c_int, name: &CStr) -> Result<()> {
    let same = match unique {
        0 => mount_id(dir, name)? == id,
        _ => unique_id(dir, name) == unique,
    };
    if same { Ok(()) } else { Err(Errno::INVAL) }
}

/// The unique id of a mount, or 0 where the kernel has none (before Linux 6.8).
#[inline(never)]
fn unique_id(dir: c_int, name: &CStr) -> u64 {
    match sys::statx(dir, name, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 => stat.mount_id,
        _ => 0,
    }
}

/// mount(2) on `.`, which is the pinned directory; move_mount(2) on the pin. A file has no such name for
/// mount(2): it is called by its own, in its directory, and the proof shows whether that was still the same.
#[inline(never)]
fn change_mounts(c: &mut Crossing<'_>, claimed: Option<&Claimed>, pin: &Fd) -> Result<usize> {
    let before = mount_id(pin.raw(), EMPTY)?;
    let is_directory = match sys::fchdir(pin.raw()) {
        Err(Errno::NOTDIR) => {
            go_to_host_path(c.work)?;
            false
        }
        result => {
            result?;
            true
        }
    };
    c.outcome.step = Step::Call;
    let moved = c.work.source.as_cstr();
    let has_source = !moved.is_empty();
    let mut beneath = None;
    let result = match *c.call {
        Call::Mount {
            source,
            kind,
            flags,
            data,
            ..
        } => {
            let source = if has_source { moved.as_ptr() } else { source };
            let target = if is_directory {
                c"."
            } else {
                c.work.name.as_cstr()
            };
            next::mount(c.via, source, target.as_ptr(), kind, flags, data)?
        }
        Call::MoveMount { from_fd, flags, .. } => {
            let moved = has_source.then(|| sys::pin(moved, 0, sys::RESOLVE_NO_MAGICLINKS));
            let moved = moved.transpose()?;
            let from_fd = moved.as_ref().map_or(from_fd, Fd::raw);
            if flags & sys::MOVE_MOUNT_BENEATH != 0 {
                beneath = Some(mount_id(from_fd, EMPTY)?);
            }
            let flags = flags | sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH;
            next::move_mount(
                c.via,
                from_fd,
                EMPTY.as_ptr(),
                pin.raw(),
                EMPTY.as_ptr(),
                flags,
            )?
        }
        _ => return Err(Errno::INVAL),
    };
    if c.change.attaches() {
        c.outcome.step = Step::Proof;
        c.outcome.mount = match beneath {
            // What is on top stays there.
            Some(id) => id,
            None if is_directory => prove_directory(c, claimed, before)?,
            None => prove_file(c, before)?,
        };
    }
    Ok(result)
}

/// The id of the new mount: it is on top of the pinned directory, and the target's path leads to it. Otherwise
/// it is taken away again. Asks the kernel only, never the file system.
#[inline(never)]
fn prove_directory(c: &mut Crossing<'_>, claimed: Option<&Claimed>, before: u64) -> Result<u64> {
    let by_path = id_by_path(c.work);
    // With the pinned directory as root, `..` leads to what is mounted on it, whatever it is called now.
    sys::chroot_here()?;
    let top = mount_id(CWD, TOP)?;
    if top == before {
        return Err(ELSEWHERE);
    }
    let proved = match claimed {
        _ if by_path != Ok(top) => Err(ELSEWHERE),
        Some(claimed) => claimed.write_mount(c.work, top, unique_id(CWD, TOP)),
        None => Ok(()),
    };
    if proved.is_err() && c.change != Change::Move {
        let _ = next::umount2(c.via, TOP.as_ptr(), libc::MNT_DETACH);
    }
    proved.map(|()| top)
}

#[inline(never)]
fn prove_file(c: &mut Crossing<'_>, before: u64) -> Result<u64> {
    let top = mount_id(CWD, c.work.name.as_cstr())?;
    if top != before && id_by_path(c.work) == Ok(top) {
        Ok(top)
    } else {
        Err(ELSEWHERE)
    }
}

#[inline(never)]
fn id_by_path(work: &Work) -> Result<u64> {
    sys::statx_follow(work.host.as_cstr(), 0).map(|stat| stat.mount_id)
}

/// To the directory that holds the target; its name is then in `work.name`.
#[inline(never)]
fn go_to_host_path(work: &mut Work) -> Result<()> {
    work.path.set(work.host.as_bytes());
    walk::go(&mut work.path, &mut work.name, CWD, true)
}

#[inline(never)]
fn go_to_unmount(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<()> {
    let Some(claimed) = claimed else {
        return go_to_host_path(c.work);
    };
    let made = claimed.read_mount(c.work)?;
    let Work {
        host, path, name, ..
    } = &mut *c.work;
    let (head, last) = split_last(host.as_bytes());
    path.set(head);
    name.set(last);
    let resolve = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    sys::fchdir(sys::pin(path.as_cstr(), libc::O_DIRECTORY, resolve)?.raw())?;
    is_that_mount(made, CWD, name.as_cstr())
}

/// Unmounts by name in the target's directory, without following a link and without looking at what may be dead.
#[inline(never)]
fn unmount_here(c: &mut Crossing<'_>) -> Result<usize> {
    let Call::Unmount { flags, .. } = *c.call else {
        return Err(Errno::INVAL);
    };
    c.outcome.step = Step::Call;
    let name = match c.work.name.as_cstr() {
        root if root.is_empty() => TOP,
        name => name,
    };
    next::umount2(
        c.via,
        name.as_ptr(),
        flags.unwrap_or(0) | libc::UMOUNT_NOFOLLOW,
    )
}

/// An unmount that nothing sends to the host by itself: it goes there when a mount of a type for the host is
/// there, and none in the caller's view. A path that means the host's is looked at there first.
#[inline(never)]
pub fn unmount_if_ours(c: &mut Crossing<'_>, mapped: bool) -> Result<Option<usize>> {
    c.outcome.reason = Reason::Unnamed;
    let own = sys::statx(CWD, c.work.target.as_cstr(), 0);
    if !mapped && own.is_ok_and(|stat| stat.is_mount_root) {
        c.outcome.reason = Reason::Own;
        return Ok(None);
    }
    // Whatever stands in the way here: the real call has the right error for what is not mounted.
    if c.enter_host().is_err() || is_ours(c) != Ok(true) {
        return Ok(None);
    }
    c.outcome.reason = Reason::Type;
    unmount_here(c).map(Some)
}

#[inline(never)]
fn is_ours(c: &mut Crossing<'_>) -> Result<bool> {
    go_to_host_path(c.work)?;
    let stat = sys::statx(CWD, c.work.name.as_cstr(), 0)?;
    if !stat.is_mount_root {
        return Ok(false);
    }
    let kind = kind_of_mount(stat.mount_id, c.work.line.room())?;
    Ok(kind.is_some_and(|kind| names_type(c.config, kind)))
}
