//! statmount(2), Linux 6.8: what the kernel knows of one mount, without a path that leads to it.
#![allow(unsafe_code)]

use std::io;

/// The same number on every architecture.
const STATMOUNT: libc::c_long = 457;

/// `STATMOUNT_MNT_BASIC`.
const BASIC: u64 = 0x2;

/// `struct mnt_id_req`, as its first version had it.
#[repr(C)]
struct Wanted {
    size: u32,
    spare: u32,
    id: u64,
    mask: u64,
}

/// The beginning of `struct statmount`; the kernel fills in no more than there is room for.
#[repr(C)]
#[derive(Default)]
struct Known {
    size: u32,
    options: u32,
    mask: u64,
    device: [u32; 2],
    magic: u64,
    flags: u32,
    fs_type: u32,
    id: u64,
    parent: u64,
    plain_id: u32,
    plain_parent: u32,
}

/// The id that mountinfo has for the mount with this id that is never used again, in the calling thread's namespace.
///
/// # Errors
/// ENOENT if there is none; ENOSYS, or EPERM from a filter of system calls, where the kernel cannot be asked.
pub fn plain_id(unique: u64) -> io::Result<u64> {
    let wanted = Wanted {
        size: size_of::<Wanted>() as u32,
        spare: 0,
        id: unique,
        mask: BASIC,
    };
    let mut known = Known::default();
    // SAFETY: both structures are laid out as the kernel has them, and live across the call with the sizes that it is
    // told.
    let done = unsafe {
        libc::syscall(
            STATMOUNT,
            &raw const wanted,
            &raw mut known,
            size_of::<Known>(),
            0,
        )
    };
    if done == 0 {
        Ok(known.plain_id.into())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::target::mount_id;

    #[test]
    fn a_mount_is_known_by_the_id_that_is_never_used_again() {
        let root = std::fs::File::open("/").unwrap();
        let mount = mount_id(&root, std::ffi::OsStr::new("")).unwrap();
        match plain_id(mount.unique) {
            Ok(id) => assert_eq!(id, mount.id),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        }
        if mount.unique != 0 {
            let none = plain_id(u64::MAX).unwrap_err();
            assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
        }
    }
}
