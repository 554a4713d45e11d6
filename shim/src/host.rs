//! Work of the child in the host's mount namespace: pin the target, make the real call, prove the
//! result.

use core::ffi::c_int;

use crate::mounts;
use crate::next::{self, Via};
use crate::outcome::{Destination, Step};
use crate::policy::{Change, Reason, is_redirected_type, split_last};
use crate::redirect;
use crate::redirected_call::RedirectedCall;
use crate::scratch::Buffers;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result, mount_id, unique_id};
use crate::text::{ThinCStr, thin};
use crate::walk;

/// Error of a target whose path leads to another file than the one that was pinned or mounted on.
const TARGET_CHANGED: Errno = Errno::STALE;

/// Empty path, which names the descriptor beside it.
const EMPTY: ThinCStr<'static> = thin(c"");
/// Path to the topmost mount on the root directory, for a process whose root is mounted over.
const TOP: ThinCStr<'static> = thin(c"/..");

/// Limits on resolving a path in which every component must be a directory or the target.
const NO_SYMLINKS: u64 = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;

/// Makes the call on the host.
pub fn make(call: &mut RedirectedCall<'_>) -> Result<usize> {
    call.step = Step::Pin;
    if call.change == Change::Unmount {
        enter_unmount_parent(call)?;
        return unmount_here(call);
    }
    let mut args = call.intercepted.args;
    let mut pin = -1;
    if call.reason != Reason::Descriptor {
        pin = pin_target(call)?;
        // mount(8) adds the present flags of a mount from the caller's mount table, which lists no
        // redirected mount. Made as it is, a remount without options would therefore clear `ro`;
        // ceph-fuse makes one to drop the kernel's caches. In the other calls args[3] is a pointer.
        if call.redirects_dir >= 0 && args[3] == libc::MS_REMOUNT as usize {
            return sys::reconfigure(pin);
        }
        if call.change.attaches() || call.intercepted.symbol == Symbol::Mount {
            return change_mounts(call, pin);
        }
        args[0] = pin as usize;
        args[1] = EMPTY.as_arg();
        args[2] |= sys::AT_EMPTY_PATH as usize;
    }
    call.step = Step::Call;
    let result = next::call(call.intercepted.via, call.intercepted.symbol, args);
    // A child that reaches this may share the caller's descriptor table, in which the pin would
    // stay open.
    sys::close(pin);
    result
}

/// Opens the target with `O_PATH`, so that later changes to its path have no effect.
fn pin_target(call: &mut RedirectedCall<'_>) -> Result<c_int> {
    if call.buffers.host.as_bytes() == b"/" {
        call.buffers.host.set(b"/..");
    }
    let resolve = if call.redirects_dir >= 0 {
        NO_SYMLINKS
    } else {
        sys::RESOLVE_NO_MAGICLINKS
    };
    let pin = sys::pin(call.buffers.host.as_thin(), 0, resolve)?;
    call.buffers.name.clear();
    if call.redirects_dir >= 0 {
        if !call.change.attaches() {
            redirect::expect_redirected_mount(call.redirects_dir, call.buffers, pin.raw())?;
        } else if sys::statx(pin.raw(), EMPTY, libc::STATX_INO)?.inode != call.inode {
            return Err(TARGET_CHANGED);
        }
    }
    Ok(pin.into_raw())
}

/// Makes a call that attaches or changes a mount at the pinned target.
///
/// mount(2) gets `.` with the pinned directory as current directory; move_mount(2) gets the pin. A
/// pinned file has no such name for mount(2), which gets the name in the file's directory. The
/// proof then shows whether the name still led to that file.
fn change_mounts(call: &mut RedirectedCall<'_>, pin: c_int) -> Result<usize> {
    let before = mount_id(pin, EMPTY)?;
    let mut args = call.intercepted.args;
    match sys::fchdir(pin) {
        Err(Errno::NOTDIR) => enter_host_parent(call.buffers)?,
        result => result?,
    }
    let is_file = !call.buffers.name.is_empty();
    let source = call.buffers.source.as_thin();
    if call.intercepted.symbol == Symbol::Mount {
        args[1] = (if is_file {
            call.buffers.name.as_thin()
        } else {
            thin(c".")
        })
        .as_arg();
        if !source.is_empty() {
            args[0] = source.as_arg();
        }
    } else {
        if !source.is_empty() {
            args[0] = sys::pin(source, 0, sys::RESOLVE_NO_MAGICLINKS)?.into_raw() as usize;
        }
        args[1] = EMPTY.as_arg();
        args[2] = pin as usize;
        args[3] = EMPTY.as_arg();
        args[4] |= (sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH) as usize;
    }
    call.step = Step::Call;
    let result = next::call(call.intercepted.via, call.intercepted.symbol, args)?;
    // A mount attached beneath another one leaves the topmost mount as it is.
    let beneath = call.intercepted.symbol == Symbol::MoveMount
        && args[4] as u32 & sys::MOVE_MOUNT_BENEATH != 0;
    if call.change.attaches() && !beneath {
        call.step = Step::Proof;
        call.mount_id = prove(call, before, is_file)?;
    }
    Ok(result)
}

/// Returns the id of the new mount if the mount is topmost on the pinned target and the target's
/// path leads to it. Otherwise unmounts it and fails.
///
/// Makes no request to the file system: statx(2) with mask 0 is answered by the kernel alone.
fn prove(call: &mut RedirectedCall<'_>, before: u64, is_file: bool) -> Result<u64> {
    let by_path = sys::statx_follow(call.buffers.host.as_thin(), 0).map_or(0, |stat| stat.mount_id);
    let top = if is_file {
        mount_id(CWD, call.buffers.name.as_thin())?
    } else {
        // With the pinned directory as root, `/..` leads to the topmost mount on it, whatever path
        // the directory has by now.
        sys::chroot_here()?;
        mount_id(CWD, TOP)?
    };
    if top == before {
        return Err(TARGET_CHANGED);
    }
    let proved = if by_path != top {
        Err(TARGET_CHANGED)
    } else if call.redirects_dir >= 0 {
        redirect::write_mount_ids(call.redirects_dir, call.buffers, top, unique_id(CWD, TOP))
    } else {
        Ok(())
    };
    if let Err(error) = proved {
        if !is_file && call.change != Change::Move {
            unmount(Via::Wrapper, TOP, libc::MNT_DETACH)?;
        }
        return Err(error);
    }
    Ok(top)
}

/// Enters the directory that contains the target on the host, and sets `buffers.name` to the
/// target's name in it.
#[inline(never)]
fn enter_host_parent(buffers: &mut Buffers) -> Result<()> {
    buffers.path.copy(&buffers.host);
    walk::enter_parent(&mut buffers.path, &mut buffers.name, CWD, true)
}

/// Enters the directory that contains the target of an unmount.
fn enter_unmount_parent(call: &mut RedirectedCall<'_>) -> Result<()> {
    if call.redirects_dir < 0 {
        return enter_host_parent(call.buffers);
    }
    let Buffers {
        host, path, name, ..
    } = &mut *call.buffers;
    let (head, last) = split_last(host.as_bytes());
    path.set(head);
    name.set(last);
    sys::fchdir(sys::pin(path.as_thin(), libc::O_DIRECTORY, NO_SYMLINKS)?.into_raw())?;
    redirect::expect_redirected_mount(call.redirects_dir, call.buffers, CWD)
}

/// Unmounts `buffers.name` in the current directory, without following a symlink and without
/// opening the target, whose file system may not respond.
#[inline(never)]
pub fn unmount_here(call: &mut RedirectedCall<'_>) -> Result<usize> {
    call.step = Step::Call;
    let name = if call.buffers.name.is_empty() {
        TOP
    } else {
        call.buffers.name.as_thin()
    };
    unmount(
        call.intercepted.via,
        name,
        call.intercepted.args[1] as c_int | libc::UMOUNT_NOFOLLOW,
    )
}

fn unmount(via: Via, name: ThinCStr<'_>, flags: c_int) -> Result<usize> {
    next::call(
        via,
        Symbol::Umount2,
        [name.as_arg(), flags as usize, 0, 0, 0],
    )
}

/// Whether an unmount that no setting redirects is meant for the host: a mount of a redirected type
/// is at the target there. For [`Destination::LocalThenHost`], the target must not be a mount point
/// in the container. Enters the directory that contains the target on the host.
///
/// On an error the caller makes the real call, which gives the right error for a target that is no
/// mount point.
pub fn has_redirected_mount(call: &mut RedirectedCall<'_>) -> Result<bool> {
    let local = sys::statx(CWD, call.buffers.target.as_thin(), 0);
    if call.destination == Destination::LocalThenHost && local.is_ok_and(|stat| stat.is_mount_root)
    {
        call.reason = Reason::LocalMount;
        return Ok(false);
    }
    call.enter_host()?;
    enter_host_parent(call.buffers)?;
    let Buffers {
        name,
        line,
        fs_type,
        ..
    } = &mut *call.buffers;
    let stat = sys::statx(CWD, name.as_thin(), 0)?;
    if !stat.is_mount_root {
        return Ok(false);
    }
    mounts::read_fs_type(name.as_thin(), stat.mount_id, line.buffer(), fs_type)?;
    Ok(is_redirected_type(call.config, fs_type.as_bytes()))
}
