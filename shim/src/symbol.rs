//! The hooked symbols: their names and the numbers of their system calls.

use crate::sys;

/// The hooked symbols but `syscall`, by their place in [`NAMES`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Symbol {
    Mount,
    Umount,
    Umount2,
    Fsopen = SYSCALL as u8 + 1,
    Fsmount,
    MoveMount,
    OpenTree,
    MountSetattr,
}

/// Names of the symbols, each a string of its own; first those that every C library has, of which `syscall` is the last.
pub const NAMES: &[u8] =
    b"mount\0umount\0umount2\0syscall\0fsopen\0fsmount\0move_mount\0open_tree\0mount_setattr\0";

/// The place of `syscall`.
pub const SYSCALL: usize = 3;

/// Numbers of their system calls; `syscall` is none.
pub const NUMBERS: [u16; 9] = [
    libc::SYS_mount as u16,
    libc::SYS_umount2 as u16,
    libc::SYS_umount2 as u16,
    0,
    sys::SYS_FSOPEN,
    sys::SYS_FSMOUNT,
    sys::SYS_MOVE_MOUNT,
    sys::SYS_OPEN_TREE,
    sys::SYS_MOUNT_SETATTR,
];

impl Symbol {
    /// The number of its system call.
    pub fn number(self) -> u16 {
        NUMBERS.get(self as usize).copied().unwrap_or(0)
    }

    /// The symbol whose system call has this number. `umount` is not among them.
    pub fn of_number(number: i64) -> Option<Self> {
        const ALL: [Symbol; 7] = [
            Symbol::Mount,
            Symbol::Umount2,
            Symbol::Fsopen,
            Symbol::Fsmount,
            Symbol::MoveMount,
            Symbol::OpenTree,
            Symbol::MountSetattr,
        ];
        ALL.into_iter()
            .find(|symbol| i64::from(symbol.number()) == number)
    }
}
