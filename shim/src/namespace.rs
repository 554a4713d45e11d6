//! The host's mount namespace, and whether it is another one than the caller's.

use crate::config::Config;
use crate::sys::{self, CWD, Errno, Fd, Inode, Result};
use crate::text::{number, split_once};
use crate::walk::{Path, fits};

/// No namespace but the caller's own was found.
const ONLY_OWN: Errno = Errno::NOLINK;

/// How the caller's namespace is recognised.
enum Own {
    /// By its file in nsfs, which exists once for each namespace.
    File(Inode),
    /// Before Linux 6.11 without a /proc that knows this process: by the mount that is the caller's root. It is
    /// in this namespace and in no other, also when the caller is in a chroot.
    Root(u64),
}

/// The host's namespace, opened but not yet entered.
pub struct Host {
    namespace: Fd,
    /// Its mount table, where the namespace came from a /proc that shows it.
    pub mounts: Option<Fd>,
    own: Own,
}

impl Host {
    /// Opens the first candidate that is not the caller's own namespace.
    pub fn find(config: &Config, path: &mut Path, buffer: &mut [u8]) -> Result<Self> {
        let mut own = find_own()?;
        let mut error = Errno::NOENT;
        for candidate in config.namespaces() {
            fits(path.set(candidate))?;
            let namespace = match sys::open_read(path.as_cstr()) {
                Ok(namespace) => namespace,
                Err(Errno::NOENT) => continue,
                Err(other) => {
                    error = if error == ONLY_OWN { error } else { other };
                    continue;
                }
            };
            let file = sys::statx(namespace.raw(), c"", libc::STATX_INO)?.inode;
            let mounts = candidate.strip_suffix(b"/ns/mnt").and_then(|process| {
                let named = path.set(process) && path.push(b"/mountinfo");
                sys::open_read(path.as_cstr()).ok().filter(|_| named)
            });
            let is_own = match (&own, &mounts) {
                (Own::File(own), _) => *own == file,
                (Own::Root(id), Some(mounts)) => find_mount(mounts, *id, buffer)?.is_some(),
                (Own::Root(_), None) => false,
            };
            if is_own {
                own = Own::File(file);
                error = ONLY_OWN;
                continue;
            }
            return Ok(Self {
                namespace,
                mounts,
                own,
            });
        }
        Err(error)
    }

    /// Makes the host's root this process's root and current directory.
    pub fn enter(&self) -> Result<()> {
        sys::enter_mount_namespace(&self.namespace)?;
        match self.own {
            Own::Root(id) if sys::statx(CWD, c"/", 0)?.mount_id == id => Err(ONLY_OWN),
            _ => Ok(()),
        }
    }
}

fn find_own() -> Result<Own> {
    if let Ok(stat) = sys::statx_follow(c"/proc/self/ns/mnt", libc::STATX_INO) {
        return Ok(Own::File(stat.inode));
    }
    if let Ok(file) = sys::own_namespace(sys::PIDFD_GET_MNT_NAMESPACE) {
        return Ok(Own::File(
            sys::statx(file.raw(), c"", libc::STATX_INO)?.inode,
        ));
    }
    Ok(Own::Root(sys::statx(CWD, c"/", 0)?.mount_id))
}

/// Whether the next child would be the first process of a new PID namespace: it would end with that child, and
/// the caller could never fork again.
pub fn child_would_be_init() -> bool {
    if sys::statx_follow(c"/proc/self/ns/pid_for_children", libc::STATX_INO).is_ok() {
        return false;
    }
    // Unreadable: because nobody is in it yet, or because /proc does not know this process.
    sys::statx_follow(c"/proc/self/ns/pid", libc::STATX_INO).is_ok()
        || (sys::own_namespace(sys::PIDFD_GET_PID_NAMESPACE).is_ok()
            && sys::own_namespace(sys::PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE).is_err())
}

/// The type of one mount in a mountinfo file.
pub fn find_mount<'a>(mounts: &Fd, id: u64, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
    let mut kept = 0;
    loop {
        let got = sys::read(mounts, buffer.get_mut(kept..).unwrap_or(&mut []))?;
        if got == 0 {
            return Ok(None);
        }
        let end = kept + got;
        let mut start = 0;
        while let (line, Some(_)) = split_once(buffer.get(start..end).unwrap_or(&[]), b'\n') {
            let len = line.len();
            if number(split_once(line, b' ').0) == Some(id) {
                return Ok(buffer.get(start..start + len).map(kind_of_line));
            }
            start += len + 1;
        }
        kept = 0;
        for at in start..end {
            if let Some(byte) = buffer.get(at).copied()
                && let Some(to) = buffer.get_mut(kept)
            {
                *to = byte;
                kept += 1;
            }
        }
    }
}

/// The word after the dash that ends the optional fields.
fn kind_of_line(line: &[u8]) -> &[u8] {
    let mut words = line.split(|byte| *byte == b' ').skip(6);
    words.by_ref().find(|word| *word == b"-");
    words.next().unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_is_found_with_its_type() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut count = 0;
        for line in text.lines() {
            let id: u64 = line.split(' ').next().unwrap().parse().unwrap();
            let kind = line.split(" - ").last().unwrap().split(' ').next().unwrap();
            for size in [512, 4096] {
                let file = sys::open_read(c"/proc/self/mountinfo").unwrap();
                let mut buffer = vec![0; size];
                let found = find_mount(&file, id, &mut buffer).unwrap();
                if line.len() < size {
                    assert_eq!(found.unwrap(), kind.as_bytes(), "{line}");
                }
            }
            count += 1;
        }
        assert!(count > 1);
        let file = sys::open_read(c"/proc/self/mountinfo").unwrap();
        let mut buffer = vec![0; 64];
        assert!(find_mount(&file, u64::MAX, &mut buffer).unwrap().is_none());
    }
}
