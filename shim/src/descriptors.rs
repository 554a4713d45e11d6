//! Origin of the mounts that calls name by descriptors.
//!
//! move_mount(2) attaches a mount of fsopen(2) and fsmount(2), and its arguments do not contain the
//! type. statfs(2) would wait for a FUSE daemon, which may be the caller. So the shim tags the
//! descriptor of fsopen(2), and notes the mount that fsmount(2) makes of it. The kernel keeps the
//! tag for every duplicate of the descriptor, in every process. The key of the note is the mount's
//! id: a descriptor can be closed, reused and duplicated.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::call::PathArg;
use crate::mounts;
use crate::scratch::Buffers;
use crate::sys::{self, Stat};
use crate::text::thin;

/// Origin of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// New and detached, of a type that the settings redirect.
    RedirectedType,
    /// New and detached, of another type.
    OtherType,
    /// Detached copy of a mount.
    Copy,
    /// Attached on the host.
    Host,
    /// Attached in the caller's namespace, or named by arguments that the kernel rejects.
    Attached,
    /// Detached and not noted: from another program, or from before an exec.
    Unknown,
}

impl Origin {
    /// Whether the mount is in no namespace.
    pub fn is_detached(self) -> bool {
        !matches!(self, Self::Host | Self::Attached)
    }
}

/// A mount that an argument names.
#[derive(Clone, Copy)]
pub struct Source {
    /// Origin of the mount.
    pub origin: Origin,
    /// Key of the mount, or 0.
    key: u64,
}

/// Known mounts: the key of each in the upper 62 bits, its origin in the lower two; 0 if empty. A
/// mount's entry is at its id modulo the length.
static MOUNTS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Tag of fsopen(2)'s descriptors of types that the settings redirect; one more for the others. The
/// tag is the number of the signal for input and output, which a context never sends.
const REDIRECTED_TYPE: usize = 62;

impl Source {
    /// No mount.
    pub const NONE: Self = Self {
        origin: Origin::Attached,
        key: 0,
    };

    /// Notes the origin of the mount, or removes the note.
    #[inline(never)]
    pub fn note(self, origin: Option<Origin>) {
        if let Some(slot) = MOUNTS.get((self.key >> 1) as usize % MOUNTS.len()) {
            let entry = origin.map_or(0, |origin| self.key << 2 | origin as u64);
            slot.store(entry, Relaxed);
        }
    }

    /// Returns the mount behind a descriptor.
    pub fn of(fd: usize, buffers: &mut Buffers<'_>) -> Self {
        let arg = PathArg {
            dir: fd as i32,
            path: thin(c"").as_arg(),
            follow: false,
            empty_allowed: true,
        };
        source(&arg, buffers)
    }
}

/// Tags the descriptor of fsopen(2). Without the tag, the origin of its mounts is unknown.
pub fn tag_context(fd: usize, redirected: bool) {
    sys::set_signal(fd, REDIRECTED_TYPE + usize::from(!redirected));
}

/// Returns the origin of the mounts of a descriptor of fsopen(2).
pub fn context_origin(fd: usize) -> Option<Origin> {
    match sys::signal(fd).wrapping_sub(REDIRECTED_TYPE) {
        0 => Some(Origin::RedirectedType),
        1 => Some(Origin::OtherType),
        _ => None,
    }
}

/// Returns the mount that an argument names.
///
/// The key is the unique mount id if the kernel (6.8) and the file system give this user one, and
/// the mount id otherwise. The kernel reuses mount ids, but a new mount with the id replaces the
/// note.
#[inline(never)]
pub fn source(arg: &PathArg, buffers: &mut Buffers<'_>) -> Source {
    let mut stat = arg.statx(libc::STATX_MNT_ID_UNIQUE);
    if stat.is_err() {
        stat = arg.statx(0);
    }
    let Ok(stat) = stat else {
        return Source::NONE;
    };
    let mut unique = 0;
    let mut key = stat.mount_id << 1;
    if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 {
        unique = stat.mount_id;
        key |= 1;
    }
    let noted = MOUNTS
        .get((key >> 1) as usize % MOUNTS.len())
        .map_or(0, |slot| slot.load(Relaxed));
    let origin = match noted & 3 {
        _ if noted >> 2 != key && is_attached(unique, &stat, buffers) => Origin::Attached,
        _ if noted >> 2 != key => Origin::Unknown,
        0 => Origin::RedirectedType,
        1 => Origin::OtherType,
        2 => Origin::Copy,
        _ => Origin::Host,
    };
    Source { origin, key }
}

/// Whether a mount is in the caller's namespace. So is, for its use, a file that stands for a
/// namespace: `ip netns` binds such files, and they are on a mount of the kernel's own.
fn is_attached(unique: u64, stat: &Stat, buffers: &mut Buffers<'_>) -> bool {
    let buffer = buffers.line.buffer();
    let found = if unique != 0 {
        sys::has_mount(unique)
    } else {
        mounts::read_fs_type(stat.mount_id, buffer, buffers.name).is_ok()
            && !buffers.name.is_empty()
    };
    found
        || sys::statx_follow(thin(c"/proc/self/ns/mnt"), 0)
            .is_ok_and(|file| file.inode.device == stat.inode.device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::fd::AsRawFd;

    fn of(file: &impl AsRawFd) -> Source {
        let mut scratch = Scratch::new().unwrap();
        Source::of(file.as_raw_fd() as usize, &mut scratch.buffers())
    }

    #[test]
    fn every_descriptor_of_a_mount_gives_its_origin() {
        let one = std::fs::File::open("/").unwrap();
        let two = one.try_clone().unwrap();
        let other = std::fs::File::open("/proc").unwrap();
        let origin = |file: &std::fs::File| of(file).origin;
        let note = |file: &std::fs::File, origin| of(file).note(origin);
        note(&one, Some(Origin::Copy));
        assert_eq!(origin(&two), Origin::Copy);
        assert_eq!(origin(&other), Origin::Attached);
        note(&two, Some(Origin::Host));
        assert_eq!(origin(&one), Origin::Host);
        note(&one, None);
        assert_eq!(origin(&two), Origin::Attached);
    }

    #[test]
    fn a_mount_of_the_kernel_is_unknown_and_a_namespace_is_not() {
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(of(&pipe).origin, Origin::Unknown);
        let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert_eq!(of(&namespace).origin, Origin::Attached);
        let none = Source::of(usize::MAX, &mut Scratch::new().unwrap().buffers());
        assert_eq!(none.origin, Origin::Attached);
    }
}
