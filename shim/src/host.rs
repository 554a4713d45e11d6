//! Work of the child in the host's mount namespace: pin the target, make the real call, prove the
//! result.

use core::ffi::c_int;

use crate::call::Call;
use crate::mounts;
use crate::next;
use crate::outcome::{Destination, Step};
use crate::policy::{Change, Reason, is_redirected_type};
use crate::redirect::{self, TARGET_CHANGED};
use crate::redirected_call::RedirectedCall;
use crate::scratch::Buffers;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result, Stat, mount_id};
use crate::text::{ThinCStr, thin};
use crate::walk;

/// Empty path, which names the descriptor beside it.
const EMPTY: ThinCStr<'static> = thin(c"");
/// Path to the topmost mount on the root directory, for a process whose root is mounted over.
const TOP: ThinCStr<'static> = thin(c"/..");

/// Limits on resolving a path in which every component must be a directory or the target.
const NO_SYMLINKS: u64 = sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;

/// Makes the call on the host.
pub fn make(call: &mut RedirectedCall<'_>) -> Result<usize> {
    call.step = Step::Pin;
    let by_descriptor = call.reason == Reason::Descriptor;
    if call.change == Change::Unmount && !by_descriptor {
        enter_unmount_parent(call)?;
        return unmount_here(call);
    }
    let mut pin = -1;
    if !by_descriptor {
        pin = pin_target(call)?;
        let Call { symbol, args, .. } = &mut call.intercepted;
        // mount(8) adds the present flags of a mount from the caller's mount table, which lists no
        // redirected mount. Made as it is, a remount without options would therefore clear `ro`;
        // ceph-fuse makes one to drop the kernel's caches. In the other calls args[3] is a pointer.
        if call.redirects_dir >= 0 && args[3] == libc::MS_REMOUNT as usize {
            return sys::reconfigure(pin);
        }
        if call.change.attaches() || *symbol == Symbol::Mount {
            return change_mounts(call, pin);
        }
        args[0] = pin as usize;
        args[1] = EMPTY.as_arg();
        args[2] |= sys::AT_EMPTY_PATH as usize;
    }
    call.step = Step::Call;
    let result = next::call(&call.intercepted);
    if pin < 0 {
        return result;
    }
    // The child shares the caller's descriptor table, in which the pin would stay open, if the
    // result is a descriptor. The pin then has the number that the result should have.
    sys::close(pin);
    match result {
        Ok(fd) if call.intercepted.returns_fd() => sys::lowest(fd, call.intercepted.args[2]),
        result => result,
    }
}

/// Opens the target with `O_PATH`, so that later changes to its path have no effect.
fn pin_target(call: &mut RedirectedCall<'_>) -> Result<c_int> {
    follow_link(call);
    if call.buffers.host.as_bytes() == b"/" {
        call.buffers.host.set(b"/..");
    }
    let pin = sys::pin(call.buffers.host.as_thin(), 0, NO_SYMLINKS)?;
    call.buffers.name.clear();
    if call.redirects_dir >= 0 {
        if !call.change.attaches() {
            redirect::expect_redirected_mount(call.redirects_dir, &mut call.buffers, pin.raw())?;
        } else {
            redirect::expect_file(&mut call.buffers, pin.raw())?;
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
    match sys::fchdir(pin) {
        Err(Errno::NOTDIR) => enter_parent(&mut call.buffers)?,
        result => result?,
    }
    let is_file = !call.buffers.name.is_empty();
    if matches!(call.change, Change::Bind | Change::Move) {
        let Buffers {
            source, path, line, ..
        } = &mut call.buffers;
        walk::follow_root_link(source, path, line, true);
    }
    let source = call.buffers.source.as_thin();
    let Call { symbol, args, .. } = &mut call.intercepted;
    if *symbol == Symbol::Mount {
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
            args[0] = sys::pin(source, 0, NO_SYMLINKS)?.into_raw() as usize;
        }
        args[1] = EMPTY.as_arg();
        args[2] = pin as usize;
        args[3] = EMPTY.as_arg();
        args[4] |= (sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH) as usize;
    }
    call.step = Step::Call;
    let result = next::call(&call.intercepted)?;
    // A mount attached beneath another one leaves the topmost mount as it is.
    let beneath = call.symbol == Symbol::MoveMount
        && call.intercepted.args[4] as u32 & sys::MOVE_MOUNT_BENEATH != 0;
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
        redirect::write_mount_ids(call.redirects_dir, &mut call.buffers, TOP)
    } else {
        Ok(())
    };
    if let Err(error) = proved {
        if !is_file && call.change != Change::Move {
            unmount(call, TOP.as_arg(), libc::MNT_DETACH)?;
        }
        return Err(error);
    }
    Ok(top)
}

/// Follows the link in the target's path on the host that only root can make, unless the launcher
/// made the path.
fn follow_link(call: &mut RedirectedCall<'_>) {
    if call.redirects_dir < 0 {
        let follow = call.intercepted.target().follow;
        let Buffers {
            host, path, line, ..
        } = &mut call.buffers;
        walk::follow_root_link(host, path, line, follow);
    }
}

/// Enters the directory that contains the target on the host, and sets `buffers.name` to the
/// target's name in it.
#[inline(never)]
fn enter_parent(buffers: &mut Buffers<'_>) -> Result<()> {
    let Buffers {
        host, path, name, ..
    } = buffers;
    path.copy(host);
    walk::split_parent(path, name);
    sys::fchdir(sys::pin(path.as_thin(), libc::O_DIRECTORY, NO_SYMLINKS)?.into_raw())
}

/// Enters the directory that contains the target of an unmount.
fn enter_unmount_parent(call: &mut RedirectedCall<'_>) -> Result<()> {
    follow_link(call);
    enter_parent(&mut call.buffers)?;
    if call.redirects_dir < 0 {
        return Ok(());
    }
    redirect::expect_redirected_mount(call.redirects_dir, &mut call.buffers, CWD)
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
    let flags = call.intercepted.args[1] as c_int | libc::UMOUNT_NOFOLLOW;
    unmount(call, name.as_arg(), flags)
}

#[inline(never)]
fn unmount(call: &mut RedirectedCall<'_>, name: usize, flags: c_int) -> Result<usize> {
    let Call { symbol, args, .. } = &mut call.intercepted;
    *symbol = Symbol::Umount2;
    args[0] = name;
    args[1] = flags as usize;
    next::call(&call.intercepted)
}

/// Whether an unmount that no setting redirects is meant for the host: a mount of a redirected type
/// is at the target there. For [`Destination::LocalThenHost`], the target must not be a mount point
/// in the container, unless it has the same mount there: a copy that came by propagation, and goes
/// with the mount on the host. Enters the directory that contains the target on the host.
///
/// On an error the caller makes the real call, which gives the right error for a target that is no
/// mount point.
pub fn has_redirected_mount(call: &mut RedirectedCall<'_>) -> Result<bool> {
    let local = sys::statx(CWD, call.buffers.target.as_thin(), 0);
    call.enter_host()?;
    enter_unmount_parent(call)?;
    let Buffers {
        name,
        line,
        fs_type,
        ..
    } = &mut call.buffers;
    let stat = sys::statx(CWD, name.as_thin(), 0)?;
    let is_other = |local: Stat| local.is_mount_root && local.inode != stat.inode;
    if !stat.is_mount_root
        || call.destination == Destination::LocalThenHost && local.is_ok_and(is_other)
    {
        return Ok(false);
    }
    mounts::read_fs_type(stat.mount_id, line.buffer(), fs_type)?;
    Ok(is_redirected_type(call.config, fs_type.as_bytes()))
}
