//! Disks of the host, as sysfs and devtmpfs show them. Run everything in here on the host's thread: what the
//! container has at `/sys` and `/dev` may be another, older or read-only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Paths that exist and fit; a `*` stands for any part of a name.
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
                    .filter(|name| fits(part, name))
                    .map(|name| dir.join(name)),
            );
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len())
                .filter(|at| name.is_char_boundary(*at))
                .any(|at| fits(rest, &name[at..]))
        }),
    }
}

/// What the files below a directory hold that fit; none if there is no such file. The end of the line does not count.
pub fn held(dir: &Path, pattern: &str) -> Option<String> {
    let file = glob(dir, pattern).into_iter().next()?;
    let text = fs::read(file).ok()?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

/// Writes to a file of sysfs, in one piece and without making it.
///
/// # Errors
/// The errno of the write.
pub fn tell(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(text.as_bytes())
}

/// A disk of the host, held open: its name cannot be given to another one meanwhile.
#[derive(Debug)]
pub struct Disk {
    /// The kernel's name, as `sda`.
    pub name: String,
    /// Its node on the host.
    pub node: PathBuf,
    /// It, open for reading.
    pub fd: File,
}

impl Disk {
    /// Opens the disk with this kernel name, by a node that is that very disk.
    ///
    /// # Errors
    /// It has no node in the host's `/dev`, or that is another device.
    pub fn open(name: &str) -> io::Result<Self> {
        let number = fs::read_to_string(format!("/sys/class/block/{name}/dev"))?;
        // A name with a slash has an exclamation mark there.
        let node = Path::new("/dev").join(name.replace('!', "/"));
        let fd = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&node)?;
        let meta = fd.metadata()?;
        let seen = format!(
            "{}:{}",
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev())
        );
        if meta.file_type().is_block_device() && seen == number.trim() {
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

    /// Whether something of the kernel has it: a mounted file system, also one that was detached and is still used,
    /// a volume manager, swap.
    ///
    /// # Errors
    /// It cannot be opened for another reason.
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

    /// It as a child's standard input, which the child opens again as it likes.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(self.fd.try_clone()?.into())
    }

    /// The multipath device that has it, by its kernel name.
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
    fn a_star_is_any_part_of_a_name() {
        for (pattern, name, fit) in [
            ("session*", "session12", true),
            ("session*", "sessio", false),
            ("*:*:*:1", "3:0:0:1", true),
            ("*:*:*:1", "3:0:0:11", false),
            ("*", "é", true),
            ("a*b*c", "a-b-b-c", true),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
        let found = glob(Path::new("/proc"), "self/ns/m*");
        assert!(
            found.contains(&PathBuf::from("/proc/self/ns/mnt")),
            "{found:?}"
        );
        assert!(glob(Path::new("/proc"), "self/no-such").is_empty());
        assert_eq!(
            held(Path::new("/proc"), "sys/kernel/ostype").as_deref(),
            Some("Linux")
        );
    }
}
