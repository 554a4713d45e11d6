//! Numbers and flags of system calls.

use core::ffi::{c_int, c_long};

// New mount API and its neighbours: the same numbers on every architecture, and absent from older headers.
pub const SYS_OPEN_TREE: u16 = 428;
pub const SYS_MOVE_MOUNT: u16 = 429;
pub const SYS_FSOPEN: u16 = 430;
pub const SYS_FSMOUNT: u16 = 432;
pub const SYS_FSCONFIG: c_long = 431;
pub const SYS_FSPICK: c_long = 433;
pub const SYS_PIDFD_OPEN: c_long = 434;
pub const SYS_OPENAT2: c_long = 437;
pub const SYS_MOUNT_SETATTR: u16 = 442;
pub const SYS_STATMOUNT: c_long = 457;
pub const STATMOUNT_FS_TYPE: u64 = 0x20;
/// Linux 6.13.
pub const STATMOUNT_FS_SUBTYPE: u64 = 0x100;

pub const OPEN_TREE_CLONE: u32 = 1;
pub const MOVE_MOUNT_F_SYMLINKS: u32 = 0x1;
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
pub const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
pub const MOVE_MOUNT_BENEATH: u32 = 0x200;
pub const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;

pub const CWD: c_int = libc::AT_FDCWD;
pub const PATH_FD: c_int = libc::O_PATH | libc::O_CLOEXEC;
