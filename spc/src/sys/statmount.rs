//! statmount(2) and listmount(2), Linux 6.8: attributes of one mount by its unique id, without a
//! path to it and without its mount table.
#![allow(unsafe_code)]

use std::io;

/// Number of the system call, the same on every architecture.
const STATMOUNT: libc::c_long = 457;
/// Number of the system call, the same on every architecture.
const LISTMOUNT: libc::c_long = 458;

/// Bits of the request mask, `STATMOUNT_*` of `<linux/mount.h>`.
const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
/// Linux 6.11.
const MNT_OPTS: u64 = 0x80;
/// Linux 6.13.
const FS_SUBTYPE: u64 = 0x100;
/// Linux 6.13.
const SB_SOURCE: u64 = 0x200;

/// `LSMT_ROOT`: lists all mounts of the namespace.
const LSMT_ROOT: u64 = u64::MAX;

/// Number of mounts per call of listmount(2).
const PAGE: usize = 256;

/// Offset of the strings in `struct statmount`, in bytes.
const STRINGS: usize = 512;

/// First size of the buffer, in bytes; enough for most mounts.
const FIRST_SIZE: usize = 4096;

/// Largest size of the buffer, in bytes. Each string takes at most one page, except for the
/// options.
const MAX_SIZE: usize = 1 << 20;

/// `struct mnt_id_req`, first version.
#[repr(C)]
struct MountIdRequest {
    size: u32,
    spare: u32,
    id: u64,
    /// Mask of the wanted fields (statmount(2)), or the id after which the list begins
    /// (listmount(2)).
    param: u64,
}

impl MountIdRequest {
    fn new(id: u64, param: u64) -> Self {
        let size = size_of::<Self>() as u32;
        let spare = 0;
        Self {
            size,
            spare,
            id,
            param,
        }
    }
}

/// Attributes of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountStat {
    /// Mount id, as in proc_pid_mountinfo(5).
    pub id: u64,
    /// Mount id of the parent mount.
    pub parent: u64,
    /// Unique id of the parent mount.
    pub parent_unique: u64,
    /// Major and minor number of the file system.
    pub device: (u32, u32),
    /// Flags of the superblock, `SB_*`.
    pub flags: u32,
    /// Attributes of the mount, `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// Peer group; 0 if there is none.
    pub peers: u64,
    /// Peer group from which the mount receives changes; 0 if there is none.
    pub master: u64,
    /// Directory of the file system that is mounted.
    pub root: Vec<u8>,
    /// Mount point below the root of the calling thread; empty if it is outside of that root.
    pub target: Vec<u8>,
    /// Type of the file system.
    pub fs_type: Vec<u8>,
    /// Subtype: the part of the type after the dot.
    pub subtype: Vec<u8>,
    /// Source, as the file system reports it.
    pub source: Vec<u8>,
    /// Options of the file system, without its flags.
    pub options: Vec<u8>,
}

/// Returns the attributes of the mount with this unique id, in the namespace of the calling thread.
///
/// # Errors
/// - ENOENT: there is no such mount.
/// - ENOSYS, or EPERM from a seccomp filter: the system call is not available.
/// - EOPNOTSUPP: the kernel does not report all fields (before Linux 6.13).
pub fn read(unique: u64) -> io::Result<MountStat> {
    const REQUIRED: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | FS_TYPE | SB_SOURCE;
    statmount(unique, REQUIRED, MNT_POINT | MNT_OPTS | FS_SUBTYPE)
}

/// Returns the mount id, as in proc_pid_mountinfo(5), of the mount with this unique id. The mount
/// is looked up in the namespace of the calling thread.
///
/// # Errors
/// Fails like [`read`], but never with EOPNOTSUPP, because Linux 6.8 reports the id.
pub fn plain_id(unique: u64) -> io::Result<u64> {
    statmount(unique, MNT_BASIC, 0).map(|stat| stat.id)
}

/// Requests the fields of two masks. All required fields must be in the reply; optional ones need
/// not.
fn statmount(unique: u64, required: u64, optional: u64) -> io::Result<MountStat> {
    let request = MountIdRequest::new(unique, required | optional);
    let mut buffer = vec![0_u8; FIRST_SIZE];
    loop {
        // SAFETY: the request has the kernel's layout. The buffer is as long as the call states,
        // and its bytes may have any value. Both live until the call returns.
        let done = unsafe {
            libc::syscall(
                STATMOUNT,
                &raw const request,
                buffer.as_mut_ptr(),
                buffer.len(),
                0,
            )
        };
        if done == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOVERFLOW) || buffer.len() >= MAX_SIZE {
            return Err(error);
        }
        buffer = vec![0; buffer.len() * 4];
    }
    let reply = Reply(&buffer);
    // The reply's mask lacks empty strings. A required string is never empty.
    if reply.u64(8) & required != required {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(reply.to_mount_stat())
}

/// Reply of statmount(2), with accessors by offset in `struct statmount`.
struct Reply<'a>(&'a [u8]);

impl Reply<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    }

    /// Returns the string that the field at an offset points to; empty if the mask lacks its bit.
    fn text(&self, bit: u64, at: usize) -> Vec<u8> {
        if self.u64(8) & bit == 0 {
            return Vec::new();
        }
        let begin = STRINGS + self.u32(at) as usize;
        let rest = self.0.get(begin..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        rest[..end.unwrap_or(rest.len())].to_vec()
    }

    fn to_mount_stat(&self) -> MountStat {
        MountStat {
            id: self.u32(56).into(),
            parent: self.u32(60).into(),
            parent_unique: self.u64(48),
            device: (self.u32(16), self.u32(20)),
            flags: self.u32(32),
            attributes: self.u64(64),
            peers: self.u64(80),
            master: self.u64(88),
            root: self.text(MNT_ROOT, 104),
            target: self.text(MNT_POINT, 108),
            fs_type: self.text(FS_TYPE, 36),
            subtype: self.text(FS_SUBTYPE, 120),
            source: self.text(SB_SOURCE, 124),
            options: self.text(MNT_OPTS, 4),
        }
    }
}

/// Returns the unique ids of the mounts that are newer than the one with this unique id, in
/// ascending order. With 0 these are all mounts in the namespace of the calling thread.
///
/// # Errors
/// Returns ENOSYS, or EPERM from a seccomp filter, if the system call is not available.
pub fn list_after(unique: u64) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    let mut last = unique;
    loop {
        let request = MountIdRequest::new(LSMT_ROOT, last);
        let mut page = [0_u64; PAGE];
        // SAFETY: the request has the kernel's layout. The page has room for as many numbers as the
        // call states. Both live until the call returns.
        let count = unsafe {
            libc::syscall(
                LISTMOUNT,
                &raw const request,
                page.as_mut_ptr(),
                page.len(),
                0,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(io::Error::last_os_error());
        };
        all.extend(page.iter().take(count));
        match page.get(..count).and_then(<[u64]>::last) {
            Some(newest) if count == PAGE => last = *newest,
            _ => return Ok(all),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::mount_id::mount_id;

    /// Returns the value, or none if the kernel of this machine lacks the system call. In CI the
    /// kernel must have it.
    pub(crate) fn if_supported<T>(result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let code = error.raw_os_error().unwrap();
                assert!([libc::ENOSYS, libc::EPERM, libc::EOPNOTSUPP].contains(&code));
                let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!ci, "{error}");
                eprintln!("SKIPPED: statmount(2) or listmount(2): {error}");
                None
            }
        }
    }

    #[test]
    fn mount_is_found_by_its_unique_id() {
        let root = std::fs::File::open("/").unwrap();
        let mount = mount_id(&root, std::ffi::OsStr::new("")).unwrap();
        let Some(stat) = if_supported(read(mount.unique)) else {
            return;
        };
        assert_eq!(
            (stat.id, plain_id(mount.unique).unwrap()),
            (mount.id, mount.id)
        );
        assert_eq!((&*stat.target, &*stat.root), (&b"/"[..], &b"/"[..]));
        assert!(!stat.fs_type.is_empty() && !stat.source.is_empty());
        let none = read(u64::MAX).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn list_after_returns_only_newer_mounts() {
        let Some(all) = if_supported(list_after(0)) else {
            return;
        };
        assert!(all.is_sorted() && !all.is_empty());
        let middle = all[all.len() / 2];
        let rest = list_after(middle).unwrap();
        // Another process may mount meanwhile.
        assert!(rest.iter().all(|id| *id > middle) && rest.len() < all.len());
        assert!(!list_after(u64::MAX - 1).unwrap().contains(&middle));
    }
}
