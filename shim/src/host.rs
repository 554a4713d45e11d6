//! What a child does once it is in the host's namespace: pin the target, make the real call, prove it.

use core::ffi::{CStr, c_int};

use crate::area::Work;
use crate::call::Call;
use crate::claim::Claimed;
use crate::cross::{Crossing, Step};
use crate::namespace::{Host, find_mount};
use crate::next;
use crate::policy::{Change, Reason, names_type, split_last};
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::walk::fits;

/// The target's path leads to another place than what was pinned or mounted on.
const ELSEWHERE: Errno = Errno::STALE;

const EMPTY: &CStr = c"";
/// From a root that is mounted on, this leads to what is on top of it.
const TOP: &CStr = c"/..";

/// Makes the call on the host.
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
            next::open_tree(pin.raw(), EMPTY.as_ptr(), flags | sys::AT_EMPTY_PATH)
        }
        Call::MountSetattr { .. } => set_attributes(c, pin.raw()),
        _ => change_mounts(c, claimed, &pin),
    }
}

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
        dir,
        EMPTY.as_ptr(),
        flags | sys::AT_EMPTY_PATH,
        attributes,
        size,
    )
}

/// Holds the target, so that what happens to its path meanwhile does not matter.
fn pin(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<Fd> {
    if c.work.host.as_bytes() == b"/" {
        fits(c.work.host.set(TOP.to_bytes()))?;
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
fn is_that_mount((id, unique): (u64, u64), dir: c_int, name: &CStr) -> Result<()> {
    let same = match unique {
        0 => mount_id(dir, name)? == id,
        _ => unique_id(dir, name) == unique,
    };
    if same { Ok(()) } else { Err(Errno::INVAL) }
}

/// The unique id of a mount, or 0 where the kernel has none (before Linux 6.8).
fn unique_id(dir: c_int, name: &CStr) -> u64 {
    match sys::statx(dir, name, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 => stat.mount_id,
        _ => 0,
    }
}

/// The id of the mount that a file is on. ENOSYS before Linux 5.8, where nothing could be proved.
fn mount_id(dir: c_int, name: &CStr) -> Result<u64> {
    let stat = sys::statx(dir, name, 0)?;
    if stat.mask & libc::STATX_MNT_ID != 0 {
        Ok(stat.mount_id)
    } else {
        Err(Errno::NOSYS)
    }
}

/// mount(2) on `.`, which is the pinned directory; move_mount(2) on the pin. A file has no such name for
/// mount(2): it is called by its own, in its directory, and the proof shows whether that was still the same.
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
                c.work.walk.name.as_cstr()
            };
            next::mount(source, target.as_ptr(), kind, flags, data)?
        }
        Call::MoveMount { from_fd, flags, .. } => {
            let moved = has_source.then(|| sys::pin(moved, 0, sys::RESOLVE_NO_MAGICLINKS));
            let moved = moved.transpose()?;
            let from_fd = moved.as_ref().map_or(from_fd, Fd::raw);
            if flags & sys::MOVE_MOUNT_BENEATH != 0 {
                beneath = Some(mount_id(from_fd, EMPTY)?);
            }
            let flags = flags | sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH;
            next::move_mount(from_fd, EMPTY.as_ptr(), pin.raw(), EMPTY.as_ptr(), flags)?
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
        let _ = next::umount2(TOP.as_ptr(), libc::MNT_DETACH);
    }
    proved.map(|()| top)
}

fn prove_file(c: &mut Crossing<'_>, before: u64) -> Result<u64> {
    let top = mount_id(CWD, c.work.walk.name.as_cstr())?;
    if top != before && id_by_path(c.work) == Ok(top) {
        Ok(top)
    } else {
        Err(ELSEWHERE)
    }
}

fn id_by_path(work: &Work) -> Result<u64> {
    sys::statx_follow(work.host.as_cstr(), 0).map(|stat| stat.mount_id)
}

/// To the directory that holds the target; its name is then in `walk.name`.
fn go_to_host_path(work: &mut Work) -> Result<()> {
    fits(work.walk.path.set(work.host.as_bytes()))?;
    work.walk.go(CWD, true)
}

fn go_to_unmount(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<()> {
    let Some(claimed) = claimed else {
        return go_to_host_path(c.work);
    };
    let made = claimed.read_mount(c.work)?;
    let (head, last) = split_last(c.work.host.as_bytes());
    let name = &mut c.work.walk.name;
    fits(name.set(head))?;
    let resolve = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    let parent = sys::pin(name.as_cstr(), libc::O_DIRECTORY, resolve)?;
    sys::fchdir(parent.raw())?;
    fits(name.set(last))?;
    is_that_mount(made, CWD, name.as_cstr())
}

/// Unmounts by name in the target's directory, without following a link and without looking at what may be dead.
fn unmount_here(c: &mut Crossing<'_>) -> Result<usize> {
    let Call::Unmount { flags, .. } = *c.call else {
        return Err(Errno::INVAL);
    };
    c.outcome.step = Step::Call;
    let name = match c.work.walk.name.as_cstr() {
        root if root.is_empty() => TOP,
        name => name,
    };
    next::umount2(name.as_ptr(), flags.unwrap_or(0) | libc::UMOUNT_NOFOLLOW)
}

/// An unmount that nothing sends to the host by itself: it goes there when a mount of a type for the host is
/// there, and none in the caller's view. A path that means the host's is looked at there first.
pub fn unmount_if_ours(c: &mut Crossing<'_>, mapped: bool) -> Result<Option<usize>> {
    c.outcome.reason = Reason::Unnamed;
    let own = sys::statx(CWD, c.work.target.as_cstr(), 0);
    if !mapped && own.is_ok_and(|stat| stat.is_mount_root) {
        c.outcome.reason = Reason::Own;
        return Ok(None);
    }
    // Whatever stands in the way here: the real call has the right error for what is not mounted.
    let Ok(host) = c.find_host() else {
        return Ok(None);
    };
    if host.enter().is_err() || is_ours(c, &host) != Ok(true) {
        return Ok(None);
    }
    c.outcome.reason = Reason::Type;
    unmount_here(c).map(Some)
}

fn is_ours(c: &mut Crossing<'_>, host: &Host) -> Result<bool> {
    go_to_host_path(c.work)?;
    let name = c.work.walk.name.as_cstr();
    let stat = sys::statx(CWD, name, 0)?;
    if !stat.is_mount_root {
        return Ok(false);
    }
    let unique = unique_id(CWD, name);
    if let Some(ours) = is_named_by_statmount(c, unique) {
        return Ok(ours);
    }
    let Some(mounts) = &host.mounts else {
        return Ok(false);
    };
    let kind = find_mount(mounts, stat.mount_id, c.work.line.room())?;
    Ok(kind.is_some_and(|kind| names_type(c.config, kind)))
}

/// Linux 6.8 tells about one mount without the whole table; the part after the dot of a FUSE type only 6.13, so
/// a type that does not match without it is looked up in the table.
fn is_named_by_statmount(c: &mut Crossing<'_>, unique: u64) -> Option<bool> {
    let mut answer = [0u64; 128];
    sys::statmount(
        unique,
        sys::STATMOUNT_FS_TYPE | sys::STATMOUNT_FS_SUBTYPE,
        &mut answer,
    )
    .ok()?;
    let (kind, subtype) = sys::statmount_types(&answer);
    let text = &mut c.work.kind;
    fits(text.set(kind)).ok()?;
    if !subtype.is_empty() {
        fits(text.push(b".") && text.push(subtype)).ok()?;
    }
    let named = names_type(c.config, text.as_bytes());
    (named || !subtype.is_empty() || !kind.starts_with(b"fuse")).then_some(named)
}
