//! Parser of `/proc/PID/mountinfo`.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// An entry of a mount table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mount {
    /// Mount id, unique on the machine while the mount exists.
    pub id: u64,
    /// Id of the parent mount.
    pub parent: u64,
    /// Device number of the file system, `major:minor`.
    pub device: String,
    /// Mounted directory of the file system.
    pub root: PathBuf,
    /// Mount point, relative to the root of the process.
    pub target: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Propagation: `shared:N`, `master:N`, …; empty for a private mount.
    pub propagation: Vec<String>,
    /// Type of the file system.
    pub fstype: String,
    /// Source of the mount.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: String,
}

impl Mount {
    /// Returns whether the mount is shared.
    pub fn is_shared(&self) -> bool {
        self.propagation
            .iter()
            .any(|tag| tag.starts_with("shared:"))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut next = || fields.next();
        let (id, parent) = (text(next()?).parse().ok()?, text(next()?).parse().ok()?);
        let (device, root, target, options) =
            (text(next()?), path(next()?), path(next()?), text(next()?));
        let mut propagation = Vec::new();
        loop {
            match next()? {
                b"-" => break,
                tag => propagation.push(text(tag)),
            }
        }
        let (fstype, source, super_options) = (
            text(next()?),
            OsString::from_vec(unescape(next()?)),
            text(next()?),
        );
        Some(Self {
            id,
            parent,
            device,
            root,
            target,
            options,
            propagation,
            fstype,
            source,
            super_options,
        })
    }
}

/// Parses a whole table.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>> {
    let lines = table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| Mount::parse(line).with_context(|| format!("bad mountinfo: {}", text(line))))
        .collect()
}

/// Returns the mount table as a process sees it.
pub fn of_process(pid: i32) -> Result<Vec<Mount>> {
    let path = format!("/proc/{pid}/mountinfo");
    parse(&fs::read(&path).with_context(|| format!("cannot read {path}"))?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(bytes)))
}

/// Decodes space, tab, newline and backslash, which the kernel writes as `\` and three octal
/// digits.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_parsed_with_its_escapes() {
        let line = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134 rw,noatime master:1 shared:7 - ext3 /dev/root\\011x rw,errors=continue\n";
        let mounts = parse(line).unwrap();
        let [mount] = mounts.as_slice() else {
            panic!("{mounts:?}")
        };
        assert_eq!(
            (mount.id, mount.parent, mount.device.as_str()),
            (36, 35, "98:0")
        );
        assert_eq!(mount.target, PathBuf::from("/mnt/a b\\"));
        assert_eq!(mount.source, "/dev/root\tx");
        assert_eq!(mount.propagation, ["master:1", "shared:7"]);
        assert_eq!(
            (mount.fstype.as_str(), mount.super_options.as_str()),
            ("ext3", "rw,errors=continue")
        );
        assert!(mount.is_shared());
    }

    #[test]
    fn a_broken_entry_is_an_error() {
        assert!(parse(b"36 35 98:0 / /mnt rw ext3 /dev/root rw\n").is_err());
    }
}
