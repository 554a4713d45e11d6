//! A call of the mount family with its arguments, whichever symbol it came through.

use core::ffi::{c_char, c_int};

use crate::next::{self, Via};
use crate::policy::Change;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Result};
use crate::watch::{self, Known};

/// The caller's arguments as words, not looked at yet: any pointer may be null or bad.
#[derive(Clone, Copy)]
pub struct Call {
    pub symbol: Symbol,
    pub via: Via,
    pub args: [usize; 5],
}

/// The path that decides about a call.
pub struct Place {
    pub dir: c_int,
    pub path: *const c_char,
    /// Whether a symlink at the end is followed.
    pub follow: bool,
    /// Whether an empty path means `dir` itself.
    pub may_be_empty: bool,
}

impl Call {
    /// The call as the caller made it.
    pub fn real(&self) -> Result<usize> {
        next::call(self.via, self.symbol, self.args)
    }

    #[inline(never)]
    pub fn place(&self) -> Place {
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
        Place {
            dir,
            path: path as *const c_char,
            follow: flags & nofollow == 0,
            may_be_empty: flags & empty != 0,
        }
    }

    /// The flags, where they say what the call does.
    fn flags(&self) -> u32 {
        let [_, _, c, d, e] = self.args;
        let flags = match self.symbol {
            Symbol::Mount => d,
            Symbol::MoveMount => e,
            _ => c,
        };
        flags as u32
    }

    /// What the call does, and what is known of the descriptor that stands for its mount. An error means that
    /// the kernel will find the same fault in the arguments.
    pub fn change(&self) -> Result<(Change, Option<Known>)> {
        let [a, b, _, attributes, _] = self.args;
        let flags = self.flags();
        let by_fd = match self.symbol {
            Symbol::Mount => return Ok((Change::of_mount_flags(u64::from(flags)), None)),
            Symbol::OpenTree if flags & sys::OPEN_TREE_CLONE != 0 => {
                return Ok((Change::Copy, None));
            }
            Symbol::OpenTree => return Ok((Change::Handle, None)),
            Symbol::MoveMount => sys::MOVE_MOUNT_F_EMPTY_PATH,
            Symbol::MountSetattr => sys::AT_EMPTY_PATH,
            _ => return Ok((Change::Unmount, None)),
        };
        let by_fd = flags & by_fd != 0 && sys::is_empty(b as *const c_char)?;
        let known = if by_fd {
            watch::mount(a as c_int)
        } else {
            None
        };
        let change = match known {
            _ if self.symbol == Symbol::MountSetattr => match sys::copy_word(attributes, 2)? {
                0 => Change::Remount,
                _ => Change::Propagation,
            },
            Some(Known::Named | Known::Other) => Change::New,
            Some(Known::Copy) => Change::Bind,
            Some(Known::Host) | None => Change::Move,
        };
        Ok((change, known))
    }
}
