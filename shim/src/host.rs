//! What a child does once it is in the host's namespace: pin the target, make the real call, prove it.

use crate::area::Work;
use crate::call::Call;
use crate::cross::{Claimed, Crossing, Failure, Outcome, at, set_suffix};
use crate::namespace::{Host, find_mount};
use crate::next;
use crate::policy::{Change, names_type};
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::walk::fits;

/// The target's path leads to another place than what was mounted on.
const ELSEWHERE: Errno = Errno(libc::ESTALE);

type Made = core::result::Result<(usize, u64), Failure>;

/// Makes the call on the host; the answer is its result and, for a new mount, the mount's id.
pub fn make(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Made {
    match (c.change, c.call) {
        (Change::Unmount, _) => unmount_at_host(c, claimed).map(|result| (result, 0)),
        (
            _,
            &Call::MountSetattr {
                dir,
                flags,
                attributes,
                size,
                ..
            },
        ) if c.on_host => next::mount_setattr(dir, c"".as_ptr(), flags, attributes, size)
            .map(|result| (result, 0))
            .map_err(at("call")),
        _ => on_pinned(c, claimed),
    }
}

fn on_pinned(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Made {
    let pin = pin(c, claimed).map_err(at("pin"))?;
    let empty = c"".as_ptr();
    let result = match *c.call {
        Call::Mount { .. } => return mount(c, claimed, &pin),
        Call::MoveMount { from_fd, flags, .. } => {
            return move_mount(c, claimed, &pin, from_fd, flags);
        }
        Call::OpenTree { flags, .. } => {
            next::open_tree(pin.raw(), empty, flags | sys::AT_EMPTY_PATH)
        }
        Call::MountSetattr {
            flags,
            attributes,
            size,
            ..
        } => {
            let flags = flags | sys::AT_EMPTY_PATH;
            next::mount_setattr(pin.raw(), empty, flags, attributes, size)
        }
        // Does not come here.
        Call::Unmount { .. } => Err(Errno(libc::EINVAL)),
    };
    result.map(|result| (result, 0)).map_err(at("call"))
}

/// Holds the target, so that what happens to its path meanwhile does not matter.
fn pin(c: &mut Crossing<'_>, claimed: Option<&Claimed>) -> Result<Fd> {
    let resolve = match claimed {
        Some(_) => sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS,
        None => sys::RESOLVE_NO_MAGICLINKS,
    };
    if c.work.host.as_bytes() == b"/" {
        // From the root `..` leads to what is mounted on it.
        fits(c.work.host.set(b"/.."))?;
    }
    let pin = sys::pin(c.work.host.as_cstr(), false, resolve)?;
    if let Some(claimed) = claimed {
        if c.change.attaches() {
            let wanted = sys::statx(pin.raw(), c"", libc::STATX_INO).map_err(|_| ELSEWHERE)?;
            if wanted.inode() != claimed.inode {
                return Err(ELSEWHERE);
            }
        } else {
            is_claimed_mount(c.work, claimed, pin.raw(), false)?;
        }
    }
    Ok(pin)
}

/// Whether the mount at `dir`, or at the current name below it, is the one that was made for the claim.
fn is_claimed_mount(work: &mut Work, claimed: &Claimed, dir: i32, by_name: bool) -> Result<()> {
    let (id, unique) = claimed.read_mount(work)?;
    let name = if by_name {
        work.walk.name.as_cstr()
    } else {
        c""
    };
    let found = match unique {
        0 => sys::statx(dir, name, 0)?.mount_id() == id,
        _ => unique_id(dir, name) == unique,
    };
    if found {
        Ok(())
    } else {
        Err(Errno(libc::EINVAL))
    }
}

/// The unique id of a mount, or 0 where the kernel has none (before Linux 6.8).
fn unique_id(dir: i32, name: &core::ffi::CStr) -> u64 {
    match sys::statx(dir, name, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.has(libc::STATX_MNT_ID_UNIQUE) => stat.mount_id(),
        _ => 0,
    }
}

fn mount_id(dir: i32, name: &core::ffi::CStr) -> Result<u64> {
    let stat = sys::statx(dir, name, 0)?;
    // Linux 5.8; without it nothing can be proved.
    if stat.has(libc::STATX_MNT_ID) {
        Ok(stat.mount_id())
    } else {
        Err(Errno(libc::ENOSYS))
    }
}

/// mount(2) on `.`, which is the pinned directory. A file has no such name: it is called by its own, in its
/// directory, and the proof shows whether that was still the same.
fn mount(c: &mut Crossing<'_>, claimed: Option<&Claimed>, pin: &Fd) -> Made {
    let Call::Mount {
        source,
        kind,
        flags,
        data,
        ..
    } = *c.call
    else {
        return Err(at("call")(Errno(libc::EINVAL)));
    };
    let before = mount_id(pin.raw(), c"").map_err(at("pin"))?;
    let is_directory = match sys::fchdir(pin.raw()) {
        Ok(()) => true,
        Err(Errno(libc::ENOTDIR)) => {
            go_to_host_path(c.work).map_err(at("pin"))?;
            false
        }
        Err(error) => return Err(at("pin")(error)),
    };
    let source = match c.work.source.as_bytes() {
        [] => source,
        _ => c.work.source.as_cstr().as_ptr(),
    };
    let target = match is_directory {
        true => c".",
        false => c.work.walk.name.as_cstr(),
    };
    let result = next::mount(source, target.as_ptr(), kind, flags, data).map_err(at("call"))?;
    if !c.change.attaches() {
        return Ok((result, 0));
    }
    let id = prove(c, claimed, before, is_directory).map_err(at("proof"))?;
    Ok((result, id))
}

fn move_mount(
    c: &mut Crossing<'_>,
    claimed: Option<&Claimed>,
    pin: &Fd,
    from_fd: i32,
    flags: u32,
) -> Made {
    let before = mount_id(pin.raw(), c"").map_err(at("pin"))?;
    let moved = match c.work.source.as_bytes() {
        [] => None,
        _ => {
            let path = c.work.source.as_cstr();
            Some(sys::pin(path, false, sys::RESOLVE_NO_MAGICLINKS).map_err(at("pin"))?)
        }
    };
    let from_fd = moved.as_ref().map_or(from_fd, Fd::raw);
    let flags = flags | sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    let result = next::move_mount(from_fd, empty, pin.raw(), empty, flags).map_err(at("call"))?;
    if flags & sys::MOVE_MOUNT_BENEATH != 0 {
        // What is on top stays there.
        return Ok((result, mount_id(from_fd, c"").map_err(at("proof"))?));
    }
    let is_directory = sys::fchdir(pin.raw()).is_ok();
    if !is_directory {
        go_to_host_path(c.work).map_err(at("proof"))?;
    }
    let id = prove(c, claimed, before, is_directory).map_err(at("proof"))?;
    Ok((result, id))
}

/// To the directory that holds the target; its name is then in `walk.name`.
fn go_to_host_path(work: &mut Work) -> Result<()> {
    fits(work.walk.path.set(work.host.as_bytes()))?;
    work.walk.go(CWD, true)
}

/// The id of the new mount: it is on top of the pinned directory, and the target's path leads to it. Otherwise
/// it is taken away again. Asks the kernel only, never the file system.
fn prove(
    c: &mut Crossing<'_>,
    claimed: Option<&Claimed>,
    before: u64,
    is_directory: bool,
) -> Result<u64> {
    let id = sys::statx_follow(c.work.host.as_cstr(), 0).map(|stat| stat.mount_id());
    if !is_directory {
        let name = c.work.walk.name.as_cstr();
        let top = mount_id(CWD, name)?;
        return if top != before && id == Ok(top) {
            Ok(top)
        } else {
            Err(ELSEWHERE)
        };
    }
    // With the pinned directory as root, `..` leads to what is mounted on it, whatever it is called now.
    sys::chroot_here()?;
    let top = mount_id(CWD, c"/..")?;
    let proved = if top == before {
        return Err(ELSEWHERE);
    } else if id != Ok(top) {
        Err(ELSEWHERE)
    } else if let Some(claimed) = claimed {
        record(c.work, claimed, top)
    } else {
        Ok(())
    };
    if let Err(error) = proved {
        if c.change != Change::Move {
            let _ = next::umount2(c"/..".as_ptr(), libc::MNT_DETACH);
        }
        return Err(error);
    }
    Ok(top)
}

/// Leaves the ids of the new mount beside its claim, for the launcher and for the unmount.
fn record(work: &mut Work, claimed: &Claimed, id: u64) -> Result<()> {
    let unique = unique_id(CWD, c"/..");
    let Work { claim, link, .. } = work;
    set_suffix(claim, b".mount")?;
    link.clear();
    fits(link.push_number(id) && link.push(b" ") && link.push_number(unique))?;
    let (dir, name) = (claimed.dir.raw(), claim.as_cstr());
    match sys::symlink(link.as_cstr(), dir, name) {
        Err(Errno(libc::EEXIST)) => {
            sys::unlink(dir, name)?;
            sys::symlink(link.as_cstr(), dir, name)
        }
        result => result,
    }
}

/// Unmounts by name in the target's directory, without following a link and without looking at what may be dead.
fn unmount_at_host(
    c: &mut Crossing<'_>,
    claimed: Option<&Claimed>,
) -> core::result::Result<usize, Failure> {
    match claimed {
        Some(claimed) => {
            go_to_claimed(c.work).map_err(at("pin"))?;
            is_claimed_mount(c.work, claimed, CWD, true).map_err(at("target"))?;
        }
        None => go_to_host_path(c.work).map_err(at("pin"))?,
    }
    unmount_here(c).map_err(at("call"))
}

fn go_to_claimed(work: &mut Work) -> Result<()> {
    let (head, last) = crate::policy::split_last(work.host.as_bytes());
    let name = &mut work.walk.name;
    fits(name.set(head))?;
    let resolve = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    let parent = sys::pin(name.as_cstr(), true, resolve)?;
    fits(name.set(last))?;
    sys::fchdir(parent.raw())
}

fn unmount_here(c: &mut Crossing<'_>) -> Result<usize> {
    let Call::Unmount { flags, .. } = *c.call else {
        return Err(Errno(libc::EINVAL));
    };
    let name = match c.work.walk.name.as_bytes() {
        [] => c"/..",
        _ => c.work.walk.name.as_cstr(),
    };
    next::umount2(name.as_ptr(), flags.unwrap_or(0) | libc::UMOUNT_NOFOLLOW)
}

/// An unmount that nothing sends to the host by itself: it goes there when a mount of a type for the host is
/// there, and none in the caller's view.
pub fn unmount_if_ours(c: &mut Crossing<'_>, mapped: bool) -> Outcome {
    let own = sys::statx(CWD, c.work.target.as_cstr(), 0).is_ok_and(|stat| stat.is_mount_root());
    if own && !mapped {
        return Outcome::passed("own");
    }
    let work = &mut *c.work;
    let name = &mut work.walk.name;
    let mut found = None;
    let _ = work.line.fill(|buffer| {
        found = Host::find(c.config, name, buffer).ok();
        Ok::<_, Errno>(0)
    });
    let ours = found.is_some_and(|host| host.enter().is_ok() && is_ours(c, &host).unwrap_or(false));
    if !ours {
        return Outcome::passed("unnamed");
    }
    match unmount_here(c) {
        Ok(result) => Outcome::carried("type", result, 0),
        Err(error) => Outcome::failed("type", at("call")(error)),
    }
}

fn is_ours(c: &mut Crossing<'_>, host: &Host) -> Result<bool> {
    go_to_host_path(c.work)?;
    let stat = sys::statx(CWD, c.work.walk.name.as_cstr(), 0)?;
    if !stat.is_mount_root() {
        return Ok(false);
    }
    let unique = unique_id(CWD, c.work.walk.name.as_cstr());
    if let Some(ours) = is_named_by_statmount(c, unique) {
        return Ok(ours);
    }
    let Some(mounts) = &host.mounts else {
        return Ok(false);
    };
    let mut ours = Ok(None);
    let config = c.config;
    let _ = c.work.line.fill(|buffer| {
        ours = find_mount(mounts, stat.mount_id(), buffer, |kind| {
            names_type(config, kind)
        });
        Ok::<_, Errno>(0)
    });
    Ok(ours?.unwrap_or(false))
}

/// Linux 6.8 tells about one mount without the whole table; the part after the dot of a FUSE type only 6.13, so
/// a type that does not match without it is looked up in the table.
fn is_named_by_statmount(c: &mut Crossing<'_>, unique: u64) -> Option<bool> {
    let mut answer = [0u64; 128];
    let mask = sys::STATMOUNT_FS_TYPE | sys::STATMOUNT_FS_SUBTYPE;
    sys::statmount(unique, mask, &mut answer).ok()?;
    let (kind, subtype) = sys::statmount_types(&answer);
    let text = &mut c.work.kind;
    fits(text.set(kind)).ok()?;
    if !subtype.is_empty() {
        fits(text.push(b".") && text.push(subtype)).ok()?;
        return Some(names_type(c.config, text.as_bytes()));
    }
    let named = names_type(c.config, kind);
    (named || !kind.starts_with(b"fuse")).then_some(named)
}
