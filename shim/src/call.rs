//! A call of the mount family with its arguments, whichever symbol it came through.

use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

use crate::next::{self, Via};
use crate::policy::Change;
use crate::sys::{self, CWD, Result};
use crate::watch::{self, Known};

/// The caller's arguments, not looked at yet: any pointer may be null or bad.
pub enum Call {
    Mount {
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    },
    /// `flags` is absent in `umount`.
    Unmount {
        target: *const c_char,
        flags: Option<c_int>,
    },
    MoveMount {
        from_fd: c_int,
        from: *const c_char,
        to_fd: c_int,
        to: *const c_char,
        flags: c_uint,
    },
    OpenTree {
        dir: c_int,
        path: *const c_char,
        flags: c_uint,
    },
    MountSetattr {
        dir: c_int,
        path: *const c_char,
        flags: c_uint,
        attributes: *const c_void,
        size: usize,
    },
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

/// What a call does, as far as its arguments and descriptors tell.
pub struct Nature {
    pub change: Change,
    /// A new mount of a type for the host, known from its descriptor.
    pub named: bool,
    /// Its descriptor is a mount of the host.
    pub on_host: bool,
    /// The descriptor of what it moves is a mount of the host.
    pub from_host: bool,
    /// Its descriptor is a mount that is attached nowhere.
    pub detached: bool,
}

impl Call {
    #[inline(never)]
    pub fn name(&self) -> &'static [u8] {
        match self {
            Self::Mount { .. } => b"mount",
            Self::Unmount { flags: None, .. } => b"umount",
            Self::Unmount { .. } => b"umount2",
            Self::MoveMount { .. } => b"move_mount",
            Self::OpenTree { .. } => b"open_tree",
            Self::MountSetattr { .. } => b"mount_setattr",
        }
    }

    #[inline(never)]
    pub fn place(&self) -> Place {
        let at = |dir, path, flags: c_uint| Place {
            dir,
            path,
            follow: flags & libc::AT_SYMLINK_NOFOLLOW as c_uint == 0,
            may_be_empty: flags & sys::AT_EMPTY_PATH != 0,
        };
        match *self {
            Self::Mount { target, .. } => at(CWD, target, 0),
            Self::Unmount { target, flags } => Place {
                follow: flags.unwrap_or(0) & libc::UMOUNT_NOFOLLOW == 0,
                ..at(CWD, target, 0)
            },
            Self::MoveMount {
                to_fd, to, flags, ..
            } => Place {
                dir: to_fd,
                path: to,
                follow: flags & sys::MOVE_MOUNT_T_SYMLINKS != 0,
                may_be_empty: flags & sys::MOVE_MOUNT_T_EMPTY_PATH != 0,
            },
            Self::OpenTree { dir, path, flags } => at(dir, path, flags),
            Self::MountSetattr {
                dir, path, flags, ..
            } => at(dir, path, flags),
        }
    }

    /// An error means that the kernel will find the same fault in the arguments.
    #[inline(never)]
    pub fn nature(&self) -> Result<Nature> {
        let mut nature = Nature {
            change: Change::Unmount,
            named: false,
            on_host: false,
            from_host: false,
            detached: false,
        };
        match *self {
            Self::Mount { flags, .. } => nature.change = Change::of_mount_flags(flags),
            Self::Unmount { .. } => {}
            Self::MoveMount {
                from_fd,
                from,
                flags,
                ..
            } => {
                let by_fd = flags & sys::MOVE_MOUNT_F_EMPTY_PATH != 0 && sys::is_empty(from)?;
                let known = if by_fd { watch::mount(from_fd) } else { None };
                nature.named = known == Some(Known::Named);
                nature.from_host = known == Some(Known::Host);
                nature.change = match known {
                    Some(Known::Named | Known::Other) => Change::New,
                    Some(Known::Copy) => Change::Bind,
                    Some(Known::Host) | None => Change::Move,
                };
            }
            Self::OpenTree { flags, .. } => {
                let copy = flags & sys::OPEN_TREE_CLONE != 0;
                nature.change = Change::Handle { copy };
            }
            Self::MountSetattr {
                dir,
                path,
                flags,
                attributes,
                ..
            } => {
                let set = sys::copy_word(attributes, 0)? | sys::copy_word(attributes, 1)?;
                let propagation = sys::copy_word(attributes, 2)?;
                nature.change = if set == 0 && propagation != 0 {
                    Change::Propagation
                } else {
                    Change::Remount
                };
                if flags & sys::AT_EMPTY_PATH != 0 && sys::is_empty(path)? {
                    let known = watch::mount(dir);
                    nature.on_host = known == Some(Known::Host);
                    nature.detached = known.is_some() && !nature.on_host;
                }
            }
        }
        Ok(nature)
    }

    /// The call as the caller made it.
    #[inline(never)]
    pub fn real(&self, via: Via) -> Result<usize> {
        match *self {
            Self::Mount {
                source,
                target,
                kind,
                flags,
                data,
            } => next::mount(via, source, target, kind, flags, data),
            Self::Unmount {
                target,
                flags: None,
            } => next::umount(via, target),
            Self::Unmount {
                target,
                flags: Some(flags),
            } => next::umount2(via, target, flags),
            Self::MoveMount {
                from_fd,
                from,
                to_fd,
                to,
                flags,
            } => next::move_mount(via, from_fd, from, to_fd, to, flags),
            Self::OpenTree { dir, path, flags } => next::open_tree(via, dir, path, flags),
            Self::MountSetattr {
                dir,
                path,
                flags,
                attributes,
                size,
            } => next::mount_setattr(via, dir, path, flags, attributes, size),
        }
    }
}
