//! An intercepted call of the mount(2) family with its arguments.

use core::ffi::{c_char, c_int};

use crate::descriptors::{self, FdKind};
use crate::next::{self, Via};
use crate::policy::Change;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Result};

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

/// Path argument that names the target of a call.
pub struct PathArg {
    /// Directory that a relative path starts at.
    pub dir: c_int,
    /// Path in the caller's memory.
    pub path: *const c_char,
    /// Whether a symlink as the last component is followed.
    pub follow: bool,
    /// Whether an empty path names `dir` itself.
    pub empty_allowed: bool,
}

impl Call {
    /// Passes the call to the next definition of its symbol, unchanged.
    pub fn call_next(&self) -> Result<usize> {
        next::call(self.via, self.symbol, self.args)
    }

    /// Returns the path argument that names the target.
    #[inline(never)]
    pub fn path_arg(&self) -> PathArg {
        let [a, b, c, d, e] = self.args;
        let (dir, path, flags, nofollow, empty) = match self.symbol {
            Symbol::Umount2 => (CWD, a, b as u32, libc::UMOUNT_NOFOLLOW as u32, 0),
            Symbol::Umount => (CWD, a, 0, 0, 0),
            Symbol::MoveMount => {
                let flags = e as u32 ^ sys::MOVE_MOUNT_T_SYMLINKS;
                let follow = sys::MOVE_MOUNT_T_SYMLINKS;
                (c as c_int, d, flags, follow, sys::MOVE_MOUNT_T_EMPTY_PATH)
            }
            Symbol::OpenTree | Symbol::MountSetattr => {
                let nofollow = libc::AT_SYMLINK_NOFOLLOW as u32;
                (a as c_int, b, c as u32, nofollow, sys::AT_EMPTY_PATH)
            }
            _ => (CWD, b, 0, 0, 0),
        };
        PathArg {
            dir,
            path: path as *const c_char,
            follow: flags & nofollow == 0,
            empty_allowed: flags & empty != 0,
        }
    }

    /// Returns the flags argument that selects the operation.
    fn flags(&self) -> u32 {
        let [_, _, c, d, e] = self.args;
        let flags = match self.symbol {
            Symbol::Mount => d,
            Symbol::MoveMount => e,
            _ => c,
        };
        flags as u32
    }

    /// Returns the effect of the call, and the kind of the descriptor that names its mount.
    ///
    /// An error means that the kernel will reject the arguments for the same reason.
    pub fn change(&self) -> Result<(Change, Option<FdKind>)> {
        let [a, b, _, attributes, _] = self.args;
        let flags = self.flags();
        let by_fd = match self.symbol {
            Symbol::Mount => return Ok((Change::from_mount_flags(u64::from(flags)), None)),
            Symbol::OpenTree if flags & sys::OPEN_TREE_CLONE != 0 => {
                return Ok((Change::Copy, None));
            }
            Symbol::OpenTree => return Ok((Change::Handle, None)),
            Symbol::MoveMount => sys::MOVE_MOUNT_F_EMPTY_PATH,
            Symbol::MountSetattr => sys::AT_EMPTY_PATH,
            _ => return Ok((Change::Unmount, None)),
        };
        let by_fd = flags & by_fd != 0 && sys::is_empty(b as *const c_char)?;
        let kind = if by_fd {
            descriptors::kind(a as c_int)
        } else {
            None
        };
        let change = match kind {
            _ if self.symbol == Symbol::MountSetattr => match sys::copy_word(attributes, 2)? {
                0 => Change::Remount,
                _ => Change::Propagation,
            },
            Some(FdKind::RedirectedType | FdKind::OtherType) => Change::New,
            Some(FdKind::Copy) => Change::Bind,
            Some(FdKind::Host) | None => Change::Move,
        };
        Ok((change, kind))
    }
}
