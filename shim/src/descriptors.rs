//! Kinds of the mounts behind descriptors.
//!
//! move_mount(2) attaches a mount of fsopen(2) and fsmount(2), and its arguments do not contain the
//! type. statfs(2) would wait for a FUSE daemon, which may be the caller. So the shim records at
//! fsopen(2) whether the type is redirected. The key is the mount's id: a descriptor can be closed,
//! reused and duplicated.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::sys::{self, Errno, Result};
use crate::text::thin;

/// Kind of the mount behind a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdKind {
    /// New and detached, of a type that the settings redirect.
    RedirectedType,
    /// New and detached, of another type.
    OtherType,
    /// Detached copy of a mount.
    Copy,
    /// Attached on the host.
    Host,
}

/// Whether each descriptor is of a call of fsopen(2) for a redirected type.
static CONTEXTS: [AtomicBool; 1 << 16] = [const { AtomicBool::new(false) }; 1 << 16];
/// Known mounts: the key of each in the upper 62 bits, its kind in the lower two; 0 if empty.
static MOUNTS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Notes whether fsopen(2) got a redirected type.
///
/// Fails with EMFILE for a redirected type and a descriptor beyond the table: without the note, the
/// mount would end up in the container.
pub fn set_context(fd: usize, redirected: bool) -> Result<()> {
    match CONTEXTS.get(fd) {
        Some(context) => context.store(redirected, Relaxed),
        None if redirected => return Err(Errno::MFILE),
        None => {}
    }
    Ok(())
}

/// Whether this descriptor is of a call of fsopen(2) for a redirected type.
pub fn context_is_redirected(fd: usize) -> bool {
    CONTEXTS
        .get(fd)
        .is_some_and(|context| context.load(Relaxed))
}

/// Notes the kind of the mount behind a descriptor, or removes the note if `kind` is `None`.
pub fn set_kind(fd: usize, kind: Option<FdKind>) {
    let Some(key) = mount_key(fd as i32) else {
        return;
    };
    for slot in &MOUNTS {
        let entry = slot.load(Relaxed);
        if entry >> 2 == key {
            let _ = slot.compare_exchange(entry, 0, Relaxed, Relaxed);
        }
    }
    if let (Some(kind), Some(slot)) = (kind, MOUNTS.get(fd % MOUNTS.len())) {
        slot.store(key << 2 | encode(kind), Relaxed);
    }
}

/// Returns the kind of the mount behind a descriptor, if known.
pub fn kind(fd: i32) -> Option<FdKind> {
    let key = mount_key(fd)?;
    let entry = MOUNTS
        .iter()
        .map(|slot| slot.load(Relaxed))
        .find(|entry| entry >> 2 == key)?;
    Some(match entry & 3 {
        0 => FdKind::RedirectedType,
        1 => FdKind::OtherType,
        2 => FdKind::Copy,
        _ => FdKind::Host,
    })
}

fn encode(kind: FdKind) -> u64 {
    match kind {
        FdKind::RedirectedType => 0,
        FdKind::OtherType => 1,
        FdKind::Copy => 2,
        FdKind::Host => 3,
    }
}

/// Returns the key of the mount behind a descriptor; never 0, which marks an empty slot.
///
/// The key is the unique mount id if the kernel (6.8) and the file system give this user one, and
/// the mount id otherwise. The kernel reuses mount ids, but a new mount with the id replaces the
/// entry.
fn mount_key(fd: i32) -> Option<u64> {
    if fd < 0 {
        return None;
    }
    match sys::unique_id(fd, thin(c"")) {
        0 => Some(sys::mount_id(fd, thin(c"")).ok()? << 1),
        unique => Some(unique << 1 | 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_context_is_replaced_when_its_descriptor_is_reused() {
        set_context(70, true).unwrap();
        assert!(context_is_redirected(70));
        set_context(70, false).unwrap();
        assert!(!context_is_redirected(70));
        assert!(!context_is_redirected(usize::MAX));
        assert_eq!(set_context(1 << 20, true), Err(Errno::MFILE));
        assert_eq!(set_context(1 << 20, false), Ok(()));
    }

    #[test]
    fn every_descriptor_of_a_mount_gives_its_kind() {
        let one = std::fs::File::open("/").unwrap();
        let two = one.try_clone().unwrap();
        let other = std::fs::File::open("/proc").unwrap();
        set_kind(one.as_raw_fd() as usize, Some(FdKind::Copy));
        assert_eq!(kind(two.as_raw_fd()), Some(FdKind::Copy));
        assert_eq!(kind(other.as_raw_fd()), None);
        set_kind(two.as_raw_fd() as usize, Some(FdKind::Host));
        assert_eq!(kind(one.as_raw_fd()), Some(FdKind::Host));
        set_kind(one.as_raw_fd() as usize, None);
        assert_eq!(kind(two.as_raw_fd()), None);
    }
}
