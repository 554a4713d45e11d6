//! Disks of the host in sysfs and devtmpfs.
//!
//! Run all functions on the host's thread. The container's `/sys` and `/dev` may be read-only, out
//! of date, or separate instances.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Returns the existing paths below a directory that match a pattern, sorted. A `*` matches any
/// part of one name.
pub fn glob(base: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![base.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for dir in found {
            if !part.contains('*') {
                next.push(dir.join(part));
                continue;
            }
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            next.extend(
                names
                    .filter(|name| matches(part, name))
                    .map(|name| dir.join(name)),
            );
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len())
                .filter(|at| name.is_char_boundary(*at))
                .any(|at| matches(rest, &name[at..]))
        }),
    }
}

/// Returns the trimmed text of the first file below a directory that matches a pattern. None if no
/// file matches or it cannot be read.
pub fn read_first(dir: &Path, pattern: &str) -> Option<String> {
    let file = glob(dir, pattern).into_iter().next()?;
    let text = fs::read(file).ok()?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

/// Writes to an attribute file of sysfs in one write(2). The file must exist.
///
/// # Errors
/// Returns the errno of open(2) or write(2).
pub fn write_attribute(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(text.as_bytes())
}

/// Disk of the host, held open. The kernel does not give its name to another disk while it is open.
#[derive(Debug)]
pub struct Disk {
    /// Kernel name, such as `sda`.
    pub name: String,
    /// Path of the device node on the host.
    pub node: PathBuf,
    /// Device node, open for reading.
    pub fd: File,
}

impl Disk {
    /// Opens the disk with this kernel name, and checks that its node is that disk.
    ///
    /// # Errors
    /// Fails if the host's `/dev` has no node of this name, or the node is another device.
    pub fn open(name: &str) -> io::Result<Self> {
        let number = fs::read_to_string(format!("/sys/class/block/{name}/dev"))?;
        // sysfs writes an exclamation mark in place of a slash in the name.
        let node = Path::new("/dev").join(name.replace('!', "/"));
        let fd = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&node)?;
        let meta = fd.metadata()?;
        let actual = format!(
            "{}:{}",
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev())
        );
        if meta.file_type().is_block_device() && actual == number.trim() {
            Ok(Self {
                name: name.to_owned(),
                node,
                fd,
            })
        } else {
            Err(io::Error::other(format!(
                "{} is not device {}",
                node.display(),
                number.trim()
            )))
        }
    }

    /// Returns whether the kernel uses the disk: a mounted file system, a volume manager, or swap.
    /// A file system that was detached and is still in use counts as well.
    ///
    /// # Errors
    /// Fails if the disk cannot be opened for another reason than EBUSY.
    pub fn in_use(&self) -> io::Result<bool> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
            .open(&self.node);
        match opened {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns a duplicate of the descriptor for a child's standard input. The child can reopen it
    /// with other flags.
    ///
    /// # Errors
    /// Fails if no file descriptor is free.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(self.fd.try_clone()?.into())
    }

    /// Returns the kernel name of the multipath device that holds the disk.
    pub fn multipath(&self) -> Option<String> {
        let holders = Path::new("/sys/class/block")
            .join(&self.name)
            .join("holders");
        glob(&holders, "dm-*").into_iter().find_map(|holder| {
            let uuid = fs::read_to_string(holder.join("dm/uuid")).ok()?;
            let name = holder.file_name()?.to_str()?.to_owned();
            uuid.starts_with("mpath-").then_some(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_any_part_of_a_name() {
        for (pattern, name, expected) in [
            ("session*", "session12", true),
            ("session*", "sessio", false),
            ("*:*:*:1", "3:0:0:1", true),
            ("*:*:*:1", "3:0:0:11", false),
            ("*", "é", true),
            ("a*b*c", "a-b-b-c", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        let found = glob(Path::new("/proc"), "self/ns/m*");
        assert!(
            found.contains(&PathBuf::from("/proc/self/ns/mnt")),
            "{found:?}"
        );
        assert!(glob(Path::new("/proc"), "self/no-such").is_empty());
        assert_eq!(
            read_first(Path::new("/proc"), "sys/kernel/ostype").as_deref(),
            Some("Linux")
        );
    }
}
