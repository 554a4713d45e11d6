//! One line of `/proc/PID/mountinfo`, as proc_pid_mountinfo(5) describes it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// An entry of a mount table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Mount id; unique among the mounts that exist now, used again later.
    pub id: u64,
    /// Mount id of the mount this one is attached to.
    pub parent: u64,
    /// `major:minor` of its file system.
    pub device: String,
    /// The directory of its file system that is mounted.
    pub root: PathBuf,
    /// Where it is attached, below the reading process's root.
    pub target: PathBuf,
    /// Options of the mount itself.
    pub attributes: String,
    /// Its peer group: what is mounted on it, or taken away, shows at its peers.
    pub peers: Option<u64>,
    /// The peer group whose changes it follows, while nobody follows its own.
    pub master: Option<u64>,
    /// File system type, with subtype.
    pub fs_type: String,
    /// What the file system calls its source.
    pub source: String,
    /// Options of the file system itself.
    pub options: String,
}

impl Entry {
    /// Reads one line; none if it is not one.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let (device, root) = (fields.next()?, fields.next()?);
        let (target, attributes) = (fields.next()?, fields.next()?);
        let (mut peers, mut master) = (None, None);
        // Optional fields end with a lone hyphen.
        loop {
            match fields.next()? {
                b"-" => break,
                field => {
                    let field = std::str::from_utf8(field).ok()?;
                    match field.split_once(':') {
                        Some(("shared", group)) => peers = group.parse().ok(),
                        Some(("master", group)) => master = group.parse().ok(),
                        _ => {}
                    }
                }
            }
        }
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        Some(Self {
            id,
            parent,
            device: text(device),
            root: PathBuf::from(OsString::from_vec(unescape(root))),
            target: PathBuf::from(OsString::from_vec(unescape(target))),
            attributes: text(attributes),
            peers,
            master,
            fs_type: text(fields.next()?),
            source: text(fields.next()?),
            options: text(fields.next().unwrap_or_default()),
        })
    }

    /// Whether a daemon answers for it.
    pub fn is_fuse(&self) -> bool {
        matches!(&*self.fs_type, "fuse" | "fuseblk") || self.fs_type.starts_with("fuse.")
    }
}

/// Undoes the octal escapes of space, tab, newline and backslash.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)))
            .and_then(|d| {
                u8::try_from(
                    (u32::from(d[0] - b'0') << 6)
                        | u32::from((d[1] - b'0') << 3)
                        | u32::from(d[2] - b'0'),
                )
                .ok()
            });
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// The calling thread's whole mount table. Run it on the host's thread to see the host's.
///
/// # Errors
/// procfs cannot be read.
pub fn read() -> std::io::Result<Vec<Entry>> {
    read_file("/proc/thread-self/mountinfo")
}

/// The mount table in a file of procfs.
///
/// # Errors
/// It cannot be read.
pub fn read_file(file: impl AsRef<Path>) -> std::io::Result<Vec<Entry>> {
    let file = std::fs::File::open(file)?;
    let mut entries = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        entries.extend(Entry::parse(&line?));
    }
    Ok(entries)
}

/// The entry with this mount id, reading no further than needed.
///
/// # Errors
/// procfs cannot be read.
pub fn find(id: u64) -> std::io::Result<Option<Entry>> {
    let file = std::fs::File::open("/proc/thread-self/mountinfo")?;
    let prefix = format!("{id} ");
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        if line.starts_with(prefix.as_bytes()) {
            return Ok(Entry::parse(&line));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_optional_fields_and_escapes() {
        let line = br"36 35 98:0 /root /mnt/a\040b\134c\012d rw,noatime shared:1 master:2 - fuse.glusterfs n\0401:/vol rw,a=b";
        let entry = Entry::parse(line).unwrap();
        assert_eq!((entry.id, entry.parent), (36, 35));
        assert_eq!(entry.target, PathBuf::from("/mnt/a b\\c\nd"));
        assert_eq!((&*entry.device, &*entry.attributes), ("98:0", "rw,noatime"));
        assert_eq!(entry.fs_type, "fuse.glusterfs");
        assert_eq!((entry.peers, entry.master), (Some(1), Some(2)));
        let slave = Entry::parse(b"1 2 0:1 / /a rw master:2 - tmpfs t rw").unwrap();
        assert_eq!((slave.peers, slave.master), (None, Some(2)));
        assert_eq!(entry.source, "n 1:/vol");
    }

    #[test]
    fn refuses_what_is_no_entry() {
        for line in [
            &b""[..],
            b"x",
            b"1 2 0:1 / /mnt rw shared:1",
            b"1 2 0:1 / /mnt rw -",
        ] {
            assert_eq!(Entry::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_lone_backslash_stays() {
        assert_eq!(unescape(br"a\9b\"), br"a\9b\");
        assert_eq!(unescape(br"\040\777"), br" \777");
    }
}
