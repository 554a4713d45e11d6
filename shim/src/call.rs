//! An intercepted call of the mount(2) family with its arguments.

use core::ffi::c_int;

use crate::symbol::Symbol;
use crate::sys::{self, CWD, Result, Stat};

/// Definition that the caller used. The real call uses the same one: a library below this one may
/// implement mount(2) by syscall(2), which would lead back to this library without end.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Via {
    /// Wrapper function of the system call.
    Wrapper,
    /// syscall(2).
    Syscall,
}

/// An intercepted call.
#[derive(Clone, Copy)]
pub struct Call {
    /// Symbol of the call. syscall(2) gives the symbol of the system call's own wrapper.
    pub symbol: Symbol,
    /// Definition that the caller used: the wrapper function or syscall(2).
    pub via: Via,
    /// Arguments as the caller passed them. Any pointer may be null or invalid.
    pub args: [usize; 5],
}

/// Path argument of a call.
pub struct PathArg {
    /// Directory that a relative path starts at.
    pub dir: c_int,
    /// Address of the path in the caller's memory.
    pub path: usize,
    /// Whether a symlink as the last component is followed.
    pub follow: bool,
    /// Whether an empty path names `dir` itself.
    pub empty_allowed: bool,
}

impl PathArg {
    /// Calls statx(2) with these arguments. Makes no request to the file system if the mask has no
    /// fields of the file.
    #[inline(never)]
    pub fn statx(&self, mask: u32) -> Result<Stat> {
        let mut flags = libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
        if !self.follow {
            flags |= libc::AT_SYMLINK_NOFOLLOW;
        }
        if self.empty_allowed {
            flags |= libc::AT_EMPTY_PATH;
        }
        sys::statx_at(self.dir, self.path, mask, flags)
    }
}

impl Call {
    /// Whether the result is a descriptor.
    pub fn returns_fd(&self) -> bool {
        matches!(self.symbol, Symbol::OpenTree | Symbol::OpenTreeAttr)
    }

    /// Returns the path argument that names the target.
    #[inline(never)]
    pub fn target(&self) -> PathArg {
        let [a, b, c, d, e] = self.args;
        let (dir, path, flags, nofollow, empty) = match self.symbol {
            Symbol::Umount2 => (CWD, a, b as u32, libc::UMOUNT_NOFOLLOW as u32, 0),
            Symbol::Umount => (CWD, a, 0, 0, 0),
            Symbol::MoveMount => {
                let flags = e as u32 ^ sys::MOVE_MOUNT_T_SYMLINKS;
                let follow = sys::MOVE_MOUNT_T_SYMLINKS;
                (c as c_int, d, flags, follow, sys::MOVE_MOUNT_T_EMPTY_PATH)
            }
            Symbol::Mount => (CWD, b, 0, 0, 0),
            _ => {
                let nofollow = libc::AT_SYMLINK_NOFOLLOW as u32;
                (a as c_int, b, c as u32, nofollow, sys::AT_EMPTY_PATH)
            }
        };
        PathArg {
            dir,
            path,
            follow: flags & nofollow == 0,
            empty_allowed: flags & empty != 0,
        }
    }

    /// Returns the path argument that names the mount which the call attaches, copies or changes.
    #[inline(never)]
    pub fn source(&self) -> PathArg {
        let [a, b, _, _, flags] = self.args;
        let (dir, path, flags) = match self.symbol {
            Symbol::Mount => (CWD, a, sys::MOVE_MOUNT_F_SYMLINKS),
            Symbol::MoveMount => (a as c_int, b, flags as u32),
            _ => return self.target(),
        };
        PathArg {
            dir,
            path,
            follow: flags & sys::MOVE_MOUNT_F_SYMLINKS != 0,
            empty_allowed: flags & sys::MOVE_MOUNT_F_EMPTY_PATH != 0,
        }
    }
}
