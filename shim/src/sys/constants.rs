//! Numbers and flags of system calls.

use core::ffi::{c_int, c_long};

// Newer system calls have the same number on every architecture. Older headers lack them.

/// open_tree(2).
pub const SYS_OPEN_TREE: u16 = 428;
/// move_mount(2).
pub const SYS_MOVE_MOUNT: u16 = 429;
/// fsopen(2).
pub const SYS_FSOPEN: u16 = 430;
/// fsconfig(2).
pub const SYS_FSCONFIG: c_long = 431;
/// fsmount(2).
pub const SYS_FSMOUNT: u16 = 432;
/// fspick(2).
pub const SYS_FSPICK: c_long = 433;
/// pidfd_open(2).
pub const SYS_PIDFD_OPEN: c_long = 434;
/// openat2(2).
pub const SYS_OPENAT2: c_long = 437;
/// mount_setattr(2).
pub const SYS_MOUNT_SETATTR: u16 = 442;
/// open_tree_attr(2), since Linux 6.15.
pub const SYS_OPEN_TREE_ATTR: u16 = 467;
/// statmount(2), since Linux 6.8.
pub const SYS_STATMOUNT: c_long = 457;

/// Flag of open_tree(2): make a detached copy.
pub const OPEN_TREE_CLONE: u32 = 1;
/// Flag of move_mount(2): follow a symlink as the source.
pub const MOVE_MOUNT_F_SYMLINKS: u32 = 0x1;
/// Flag of move_mount(2): an empty path as the source names its descriptor.
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
/// Flag of move_mount(2): follow a symlink as the target.
pub const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
/// Flag of move_mount(2): an empty path as the target names its descriptor.
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
/// Flag of move_mount(2): attach beneath the topmost mount.
pub const MOVE_MOUNT_BENEATH: u32 = 0x200;
/// Flag of many system calls: an empty path names the descriptor beside it.
pub const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;

/// Flag of openat2(2): follow no magic links of /proc.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Flag of openat2(2): follow no symlinks.
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;

/// Command of fcntl(2): set the signal for input and output.
pub const F_SETSIG: usize = 10;
/// Command of fcntl(2): get that signal.
pub const F_GETSIG: usize = 11;

/// Descriptor that stands for the current directory.
pub const CWD: c_int = libc::AT_FDCWD;
/// Flags of open(2) for a descriptor that only names a file.
pub const PATH_FD: c_int = libc::O_PATH | libc::O_CLOEXEC;
