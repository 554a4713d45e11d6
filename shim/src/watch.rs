//! Which descriptors lead to which kind of mount.
//!
//! `move_mount` attaches what `fsopen` and `fsmount` made, and says nothing of its type; asking the mount would
//! wait for a FUSE daemon that is busy in this very call. So the type is remembered from `fsopen` on. A mount is
//! known by its id and not by the descriptor's number, which can be closed, used again and duplicated.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::sys::{self, Errno, Result};
use crate::text::name;

/// What is known of a mount behind a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// New, not attached, of a type that goes to the host.
    Named,
    /// New, not attached, of another type.
    Other,
    /// A copy of a mount, not attached.
    Copy,
    /// Attached on the host.
    Host,
}

/// Whether a descriptor is of an `fsopen` call for a type that goes to the host.
static CONTEXTS: [AtomicBool; 1 << 16] = [const { AtomicBool::new(false) }; 1 << 16];
static MOUNTS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Remembers what `fsopen` was asked for. Fails for a number beyond the table: not knowing would mean mounting
/// in the wrong place later.
pub fn set_context(fd: usize, named: bool) -> Result<()> {
    match CONTEXTS.get(fd) {
        Some(context) => context.store(named, Relaxed),
        None if named => return Err(Errno::MFILE),
        None => {}
    }
    Ok(())
}

/// Whether this descriptor came from `fsopen` for a type that goes to the host.
pub fn context_is_named(fd: usize) -> bool {
    CONTEXTS
        .get(fd)
        .is_some_and(|context| context.load(Relaxed))
}

/// Remembers the mount behind a descriptor; `None` forgets it.
pub fn set_mount(fd: usize, known: Option<Known>) {
    let Some(key) = key(fd as i32) else {
        return;
    };
    for slot in &MOUNTS {
        let entry = slot.load(Relaxed);
        if entry >> 2 == key {
            let _ = slot.compare_exchange(entry, 0, Relaxed, Relaxed);
        }
    }
    if let (Some(known), Some(slot)) = (known, MOUNTS.get(fd % MOUNTS.len())) {
        slot.store(key << 2 | code(known), Relaxed);
    }
}

/// What is known of the mount behind a descriptor.
pub fn mount(fd: i32) -> Option<Known> {
    let key = key(fd)?;
    let entry = MOUNTS
        .iter()
        .map(|slot| slot.load(Relaxed))
        .find(|entry| entry >> 2 == key)?;
    Some(match entry & 3 {
        0 => Known::Named,
        1 => Known::Other,
        2 => Known::Copy,
        _ => Known::Host,
    })
}

fn code(known: Known) -> u64 {
    match known {
        Known::Named => 0,
        Known::Other => 1,
        Known::Copy => 2,
        Known::Host => 3,
    }
}

/// The unique id where the kernel has one (6.8) and the file system lets this user look, else the plain id,
/// which can come again but is then remembered anew. Never 0, which is an empty slot.
fn key(fd: i32) -> Option<u64> {
    if fd < 0 {
        return None;
    }
    match sys::unique_id(fd, name(c"")) {
        0 => Some(sys::mount_id(fd, name(c"")).ok()? << 1),
        unique => Some(unique << 1 | 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_context_is_forgotten_when_its_number_is_used_again() {
        set_context(70, true).unwrap();
        assert!(context_is_named(70));
        set_context(70, false).unwrap();
        assert!(!context_is_named(70));
        assert!(!context_is_named(usize::MAX));
        assert_eq!(set_context(1 << 20, true), Err(Errno::MFILE));
        assert_eq!(set_context(1 << 20, false), Ok(()));
    }

    #[test]
    fn a_mount_is_known_by_every_descriptor_of_it() {
        let one = std::fs::File::open("/").unwrap();
        let two = one.try_clone().unwrap();
        let other = std::fs::File::open("/proc").unwrap();
        set_mount(one.as_raw_fd() as usize, Some(Known::Copy));
        assert_eq!(mount(two.as_raw_fd()), Some(Known::Copy));
        assert_eq!(mount(other.as_raw_fd()), None);
        set_mount(two.as_raw_fd() as usize, Some(Known::Host));
        assert_eq!(mount(one.as_raw_fd()), Some(Known::Host));
        set_mount(one.as_raw_fd() as usize, None);
        assert_eq!(mount(two.as_raw_fd()), None);
    }
}
