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
    OpenTreeAttr,
}

/// Names of the hooked symbols, each ended by a NUL. Every C library has the ones up to `syscall`.
pub const NAMES: &[u8] =
    b"mount\0umount\0umount2\0syscall\0fsopen\0fsmount\0move_mount\0open_tree\0mount_setattr\0\
open_tree_attr\0";

/// Index of `syscall`.
pub const SYSCALL: usize = 3;

/// System call number of each symbol; 0 for `syscall`, which has none of its own.
pub const NUMBERS: [u16; 10] = [
    libc::SYS_mount as u16,
    libc::SYS_umount2 as u16,
    libc::SYS_umount2 as u16,
    0,
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
    pub fn from_syscall_number(number: i64) -> Option<Self> {
        const ALL: [Symbol; 8] = [
            Symbol::Mount,
            Symbol::Umount2,
            Symbol::Fsopen,
            Symbol::Fsmount,
            Symbol::MoveMount,
            Symbol::OpenTree,
            Symbol::MountSetattr,
            Symbol::OpenTreeAttr,
        ];
        ALL.into_iter()
            .find(|symbol| i64::from(symbol.syscall_number()) == number)
    }
}
