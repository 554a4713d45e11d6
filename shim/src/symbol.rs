//! The hooked symbols: their names and the numbers of their system calls.

use crate::sys;

/// Hooked symbols except `syscall`. Each value is an index into [`NAMES`] and [`NUMBERS`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Symbol {
    /// mount(2).
    Mount,
    /// umount(2).
    Umount,
    /// umount2(2).
    Umount2,
    /// fsopen(2).
    Fsopen = SYSCALL as u8 + 1,
    /// fsmount(2).
    Fsmount,
    /// move_mount(2).
    MoveMount,
    /// open_tree(2).
    OpenTree,
    /// mount_setattr(2).
    MountSetattr,
    /// open_tree_attr(2), which has no wrapper to hook.
    #[expect(dead_code, reason = "made from its number")]
    OpenTreeAttr,
}

/// Names of the hooked symbols, each ended by a NUL. Every C library has the ones up to `syscall`.
pub const NAMES: &[u8] =
    b"mount\0umount\0umount2\0syscall\0fsopen\0fsmount\0move_mount\0open_tree\0mount_setattr\0\
open_tree_attr\0";

/// Index of `syscall`.
pub const SYSCALL: usize = 3;

/// Number in [`NUMBERS`] for `syscall`, which has none of its own. No system call has it.
const NO_NUMBER: u16 = u16::MAX;

/// System call number of each symbol.
pub const NUMBERS: [u16; 10] = [
    libc::SYS_mount as u16,
    libc::SYS_umount2 as u16,
    libc::SYS_umount2 as u16,
    NO_NUMBER,
    sys::SYS_FSOPEN,
    sys::SYS_FSMOUNT,
    sys::SYS_MOVE_MOUNT,
    sys::SYS_OPEN_TREE,
    sys::SYS_MOUNT_SETATTR,
    sys::SYS_OPEN_TREE_ATTR,
];

impl Symbol {
    /// Returns the number of the symbol's system call.
    pub fn syscall_number(self) -> u16 {
        NUMBERS.get(self as usize).copied().unwrap_or(0)
    }

    /// Returns the symbol whose system call has this number. The number of umount2(2) gives
    /// [`Symbol::Umount2`], never [`Symbol::Umount`].
    ///
    /// # Safety
    /// The number must not be [`NO_NUMBER`].
    pub unsafe fn from_syscall_number(number: i64) -> Option<Self> {
        let same = |known: &u16| i64::from(*known) == number;
        let index = NUMBERS.iter().rposition(same)?;
        // SAFETY: each index is a symbol, but that of `syscall`, whose entry is no such number.
        Some(unsafe { core::mem::transmute::<u8, Self>(index as u8) })
    }
}
