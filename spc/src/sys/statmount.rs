//! statmount(2) and listmount(2), Linux 6.8: what the kernel knows of one mount, without a path that leads to it and
//! without a reading of the table that it is in.
#![allow(unsafe_code)]

use std::io;

/// The same numbers on every architecture.
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;

/// Parts that can be asked for, `STATMOUNT_*` of `<linux/mount.h>`.
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

/// `LSMT_ROOT`: all mounts of the namespace.
const ALL: u64 = u64::MAX;

/// How many mounts are listed at once.
const PAGE: usize = 256;

/// Where the strings begin in `struct statmount`.
const STRINGS: usize = 512;

/// Room for the strings of most mounts.
const ROOM: usize = 4096;

/// More than that no mount has: each string is one page, but for options.
const MOST: usize = 1 << 20;

/// `struct mnt_id_req`, as its first version had it.
#[repr(C)]
struct Wanted {
    size: u32,
    spare: u32,
    id: u64,
    /// What is asked for, or the id after which a list begins.
    mask: u64,
}

impl Wanted {
    fn new(id: u64, mask: u64) -> Self {
        let size = size_of::<Self>() as u32;
        let spare = 0;
        Self {
            size,
            spare,
            id,
            mask,
        }
    }
}

/// What the kernel says of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountStat {
    /// Its id, as in mountinfo.
    pub id: u64,
    /// The id of the mount that it is on.
    pub parent: u64,
    /// The id of that which is never used again.
    pub parent_unique: u64,
    /// Major and minor number of its file system.
    pub device: (u32, u32),
    /// `SB_*`, what was asked of the file system.
    pub flags: u32,
    /// `MOUNT_ATTR_*`, what was asked of the mount.
    pub attributes: u64,
    /// Its peer group; 0 if it has none.
    pub peers: u64,
    /// The peer group that it follows; 0 if there is none.
    pub master: u64,
    /// The directory of its file system that is mounted.
    pub root: Vec<u8>,
    /// Where it is attached, below the calling thread's root; empty where that does not lead.
    pub target: Vec<u8>,
    /// Type of its file system.
    pub fs_type: Vec<u8>,
    /// The part of the type after the dot.
    pub subtype: Vec<u8>,
    /// What the file system calls its source.
    pub source: Vec<u8>,
    /// Options of the file system, but for those that are flags.
    pub options: Vec<u8>,
}

/// What the kernel knows of the mount with this id that is never used again, in the calling thread's namespace.
///
/// # Errors
/// ENOENT if there is none; ENOSYS, or EPERM from a filter of system calls, where the kernel cannot be asked; EOPNOTSUPP
/// from one that does not know enough (before Linux 6.13).
pub fn read(unique: u64) -> io::Result<MountStat> {
    const NEEDED: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | FS_TYPE | SB_SOURCE;
    ask(unique, NEEDED, MNT_POINT | MNT_OPTS | FS_SUBTYPE)
}

/// The id that mountinfo has for the mount with this id that is never used again, in the calling thread's namespace.
///
/// # Errors
/// As of [`of`]; Linux 6.8 knows enough.
pub fn plain_id(unique: u64) -> io::Result<u64> {
    ask(unique, MNT_BASIC, 0).map(|known| known.id)
}

/// Asks for what is needed, and for what else there may be.
fn ask(unique: u64, needed: u64, wanted: u64) -> io::Result<MountStat> {
    let wanted = Wanted::new(unique, needed | wanted);
    let mut buffer = vec![0_u8; ROOM];
    loop {
        // SAFETY: the request is laid out as the kernel has it, and the buffer, which is as long as the kernel is told,
        // is bytes of any value; both live across the call.
        let done = unsafe {
            libc::syscall(
                STATMOUNT,
                &raw const wanted,
                buffer.as_mut_ptr(),
                buffer.len(),
                0,
            )
        };
        if done == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOVERFLOW) || buffer.len() >= MOST {
            return Err(error);
        }
        buffer = vec![0; buffer.len() * 4];
    }
    let answer = Answer(&buffer);
    // Strings that are empty are left out, and those in the mask never are.
    if answer.u64(8) & needed != needed {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(answer.known())
}

/// The answer to a request, read where `struct statmount` has it.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    }

    /// The string whose place is at an offset, if it was filled in.
    fn text(&self, part: u64, at: usize) -> Vec<u8> {
        if self.u64(8) & part == 0 {
            return Vec::new();
        }
        let begin = STRINGS + self.u32(at) as usize;
        let rest = self.0.get(begin..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        rest[..end.unwrap_or(rest.len())].to_vec()
    }

    fn known(&self) -> MountStat {
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

/// The mounts of the calling thread's namespace that were made after the one with this id that is never used again, by
/// theirs.
///
/// # Errors
/// ENOSYS, or EPERM from a filter of system calls, where the kernel cannot be asked.
pub fn after(unique: u64) -> io::Result<Vec<u64>> {
    let mut all = Vec::new();
    let mut last = unique;
    loop {
        let wanted = Wanted::new(ALL, last);
        let mut page = [0_u64; PAGE];
        // SAFETY: the request is laid out as the kernel has it, and the page has room for as many numbers as the kernel
        // is told; both live across the call.
        let got = unsafe {
            libc::syscall(
                LISTMOUNT,
                &raw const wanted,
                page.as_mut_ptr(),
                page.len(),
                0,
            )
        };
        let Ok(got) = usize::try_from(got) else {
            return Err(io::Error::last_os_error());
        };
        all.extend(page.iter().take(got));
        match page.get(..got).and_then(<[u64]>::last) {
            Some(newest) if got == PAGE => last = *newest,
            _ => return Ok(all),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::target::mount_id;

    /// What the kernel that runs the tests says, which may not know how; not so in CI.
    pub(crate) fn asked<T>(answer: io::Result<T>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
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
    fn a_mount_is_known_by_the_id_that_is_never_used_again() {
        let root = std::fs::File::open("/").unwrap();
        let mount = mount_id(&root, std::ffi::OsStr::new("")).unwrap();
        let Some(known) = asked(read(mount.unique)) else {
            return;
        };
        assert_eq!(
            (known.id, plain_id(mount.unique).unwrap()),
            (mount.id, mount.id)
        );
        assert_eq!((&*known.target, &*known.root), (&b"/"[..], &b"/"[..]));
        assert!(!known.fs_type.is_empty() && !known.source.is_empty());
        let none = read(u64::MAX).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn mounts_are_listed_from_where_it_is_asked() {
        let Some(all) = asked(after(0)) else {
            return;
        };
        assert!(all.is_sorted() && !all.is_empty());
        let middle = all[all.len() / 2];
        let rest = after(middle).unwrap();
        // Others may mount meanwhile.
        assert!(rest.iter().all(|id| *id > middle) && rest.len() < all.len());
        assert!(!after(u64::MAX - 1).unwrap().contains(&middle));
    }
}
