//! What a child does once it is in the host's namespace: pin the target, make the real call, prove it.

use core::ffi::c_int;

use crate::area::Work;
use crate::claim;
use crate::mounts::kind_of;
use crate::next::{self, Via};
use crate::outcome::{Route, Step};
use crate::policy::{Change, Reason, names_type, split_last};
use crate::redirected_call::RedirectedCall;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result, mount_id, unique_id};
use crate::text::{Name, name};
use crate::walk;

/// The target's path leads to another place than what was pinned or mounted on.
const ELSEWHERE: Errno = Errno::STALE;

const EMPTY: Name<'static> = name(c"");
/// From a root that is mounted on, this leads to what is on top of it.
const TOP: Name<'static> = name(c"/..");

const NO_LINKS: u64 = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;

/// Makes the call on the host.
pub fn make(c: &mut RedirectedCall<'_>) -> Result<usize> {
    c.step = Step::Pin;
    if c.change == Change::Unmount {
        go_to_unmount(c)?;
        return unmount_here(c);
    }
    let mut args = c.call.args;
    let mut pin = -1;
    if c.reason != Reason::Descriptor {
        pin = pin_target(c)?;
        // mount(8) names the flags that it finds in the caller's mount table, where a claimed mount is not: taken by
        // its word, a remount without a reason (ceph-fuse, to empty the kernel's caches) would take `ro` away. The
        // other calls have a pointer in this place.
        if c.claims >= 0 && args[3] == libc::MS_REMOUNT as usize {
            return sys::reconfigure(pin);
        }
        if c.change.attaches() || c.call.symbol == Symbol::Mount {
            return change_mounts(c, pin);
        }
        args[0] = pin as usize;
        args[1] = EMPTY.word();
        args[2] |= sys::AT_EMPTY_PATH as usize;
    }
    c.step = Step::Call;
    let result = next::call(c.call.via, c.call.symbol, args);
    // The caller's as well: only here may descriptors be shared.
    sys::close(pin);
    result
}

/// Holds the target, so that what happens to its path meanwhile does not matter.
fn pin_target(c: &mut RedirectedCall<'_>) -> Result<c_int> {
    if c.work.host.as_bytes() == b"/" {
        c.work.host.set(b"/..");
    }
    let resolve = if c.claims >= 0 {
        NO_LINKS
    } else {
        sys::RESOLVE_NO_MAGICLINKS
    };
    let pin = sys::pin(c.work.host.as_name(), 0, resolve)?;
    c.work.name.clear();
    if c.claims >= 0 {
        if !c.change.attaches() {
            claim::is_that_mount(c.claims, c.work, pin.raw())?;
        } else if sys::statx(pin.raw(), EMPTY, libc::STATX_INO)?.inode != c.inode {
            return Err(ELSEWHERE);
        }
    }
    Ok(pin.into_raw())
}

/// mount(2) on `.`, which is the pinned directory; move_mount(2) on the pin. A file has no such name for
/// mount(2): it is called by its own, in its directory, and the proof shows whether that was still the same.
fn change_mounts(c: &mut RedirectedCall<'_>, pin: c_int) -> Result<usize> {
    let before = mount_id(pin, EMPTY)?;
    let mut args = c.call.args;
    match sys::fchdir(pin) {
        Err(Errno::NOTDIR) => go_to_host_path(c.work)?,
        result => result?,
    }
    let is_file = !c.work.name.is_empty();
    let source = c.work.source.as_name();
    if c.call.symbol == Symbol::Mount {
        args[1] = (if is_file {
            c.work.name.as_name()
        } else {
            name(c".")
        })
        .word();
        if !source.is_empty() {
            args[0] = source.word();
        }
    } else {
        if !source.is_empty() {
            args[0] = sys::pin(source, 0, sys::RESOLVE_NO_MAGICLINKS)?.into_raw() as usize;
        }
        args[1] = EMPTY.word();
        args[2] = pin as usize;
        args[3] = EMPTY.word();
        args[4] |= (sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH) as usize;
    }
    c.step = Step::Call;
    let result = next::call(c.call.via, c.call.symbol, args)?;
    // What is on top stays there when the new mount goes beneath it.
    let beneath =
        c.call.symbol == Symbol::MoveMount && args[4] as u32 & sys::MOVE_MOUNT_BENEATH != 0;
    if c.change.attaches() && !beneath {
        c.step = Step::Proof;
        c.mount = prove(c, before, is_file)?;
    }
    Ok(result)
}

/// The id of the new mount: it is on top of the pinned directory, and the target's path leads to it. Otherwise
/// it is taken away again. Asks the kernel only, never the file system.
fn prove(c: &mut RedirectedCall<'_>, before: u64, is_file: bool) -> Result<u64> {
    let by_path = sys::statx_follow(c.work.host.as_name(), 0).map_or(0, |stat| stat.mount_id);
    let top = if is_file {
        mount_id(CWD, c.work.name.as_name())?
    } else {
        // With the pinned directory as root, `..` leads to what is mounted on it, whatever it is called now.
        sys::chroot_here()?;
        mount_id(CWD, TOP)?
    };
    if top == before {
        return Err(ELSEWHERE);
    }
    let proved = if by_path != top {
        Err(ELSEWHERE)
    } else if c.claims >= 0 {
        claim::write_mount(c.claims, c.work, top, unique_id(CWD, TOP))
    } else {
        Ok(())
    };
    if let Err(error) = proved {
        if !is_file && c.change != Change::Move {
            unmount(Via::Own, TOP, libc::MNT_DETACH)?;
        }
        return Err(error);
    }
    Ok(top)
}

/// To the directory that holds the target; its name is then in `work.name`.
#[inline(never)]
fn go_to_host_path(work: &mut Work) -> Result<()> {
    work.path.copy(&work.host);
    walk::go(&mut work.path, &mut work.name, CWD, true)
}

fn go_to_unmount(c: &mut RedirectedCall<'_>) -> Result<()> {
    if c.claims < 0 {
        return go_to_host_path(c.work);
    }
    let Work {
        host, path, name, ..
    } = &mut *c.work;
    let (head, last) = split_last(host.as_bytes());
    path.set(head);
    name.set(last);
    sys::fchdir(sys::pin(path.as_name(), libc::O_DIRECTORY, NO_LINKS)?.into_raw())?;
    claim::is_that_mount(c.claims, c.work, CWD)
}

/// Unmounts by name in the target's directory, without following a link and without looking at what may be dead.
#[inline(never)]
pub fn unmount_here(c: &mut RedirectedCall<'_>) -> Result<usize> {
    c.step = Step::Call;
    let name = if c.work.name.is_empty() {
        TOP
    } else {
        c.work.name.as_name()
    };
    unmount(
        c.call.via,
        name,
        c.call.args[1] as c_int | libc::UMOUNT_NOFOLLOW,
    )
}

fn unmount(via: Via, name: Name<'_>, flags: c_int) -> Result<usize> {
    next::call(via, Symbol::Umount2, [name.word(), flags as usize, 0, 0, 0])
}

/// Whether an unmount that nothing sends to the host by itself belongs there: a mount of a type for the host is
/// there, and none in the caller's view, unless the path means the host's. Goes to its directory. Whatever
/// stands in the way: the real call has the right error for what is not mounted.
pub fn find_ours(c: &mut RedirectedCall<'_>) -> Result<bool> {
    let own = sys::statx(CWD, c.work.target.as_name(), 0);
    if c.route == Route::Look && own.is_ok_and(|stat| stat.is_mount_root) {
        c.reason = Reason::Own;
        return Ok(false);
    }
    c.enter_host()?;
    go_to_host_path(c.work)?;
    let Work {
        name, line, kind, ..
    } = &mut *c.work;
    let stat = sys::statx(CWD, name.as_name(), 0)?;
    if !stat.is_mount_root {
        return Ok(false);
    }
    kind_of(name.as_name(), stat.mount_id, line.room(), kind)?;
    Ok(names_type(c.config, kind.as_bytes()))
}
