//! Entries of a mount table: lines of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), or the same
//! fields by statmount(2), which does not read the table.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sys::statmount::{self, MountStat};

/// Number of attempts to find a mount while other processes rename directories in its path.
pub const FIND_ATTEMPTS: usize = 20;

/// Entry of a mount table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Mount id. The kernel reuses it after the mount is gone.
    pub id: u64,
    /// Mount id of the parent mount.
    pub parent: u64,
    /// Device number of the file system, `major:minor`.
    pub device: String,
    /// Directory of the file system that is mounted.
    pub root: PathBuf,
    /// Mount point below the root of the reading thread.
    pub target: PathBuf,
    /// Options of the mount.
    pub attributes: String,
    /// Peer group, if the propagation is shared: changes below propagate to its other members.
    pub peers: Option<u64>,
    /// Peer group from which the mount receives changes, if it is a slave.
    pub master: Option<u64>,
    /// File system type, with subtype.
    pub fs_type: String,
    /// Source, as the file system reports it.
    pub source: String,
    /// Options of the superblock.
    pub options: String,
    /// Unique mount id, which is never reused; 0 if the entry is from a table, which lacks it.
    #[serde(skip)]
    pub unique: u64,
    /// Unique mount id of the parent mount; 0 if the entry is from a table.
    #[serde(skip)]
    pub parent_unique: u64,
}

impl Entry {
    /// Parses one line of a table; none if it is not valid.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let (device, root) = (fields.next()?, fields.next()?);
        let (target, attributes) = (fields.next()?, fields.next()?);
        let (mut peers, mut master) = (None, None);
        // A single hyphen ends the optional fields.
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
            unique: 0,
            parent_unique: 0,
        })
    }

    /// Converts the reply of statmount(2). None if the mount is outside of the thread's root, as a
    /// table leaves such a mount out.
    fn from_stat(stat: MountStat, unique: u64) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let group = |number: u64| (number != 0).then_some(number);
        let mut fs_type = text(&stat.fs_type);
        if !stat.subtype.is_empty() {
            fs_type = format!("{fs_type}.{}", text(&stat.subtype));
        }
        let mut options = flag_words(&SUPERBLOCK_FLAGS, u64::from(stat.flags));
        if !stat.options.is_empty() {
            options = format!("{options},{}", text(&unescape(&stat.options)));
        }
        let (major, minor) = stat.device;
        (!stat.target.is_empty()).then(|| Self {
            id: stat.id,
            parent: stat.parent,
            device: format!("{major}:{minor}"),
            root: PathBuf::from(OsString::from_vec(stat.root)),
            target: PathBuf::from(OsString::from_vec(stat.target)),
            attributes: attributes(stat.attributes),
            peers: group(stat.peers),
            master: group(stat.master),
            fs_type,
            source: text(&stat.source),
            options,
            unique,
            parent_unique: stat.parent_unique,
        })
    }

    /// Returns whether this is a FUSE file system, which a daemon serves.
    pub fn is_fuse(&self) -> bool {
        matches!(&*self.fs_type, "fuse" | "fuseblk") || self.fs_type.starts_with("fuse.")
    }
}

/// Words of a mount table for flags of a superblock, `SB_*`.
const SUPERBLOCK_FLAGS: [(u64, &str); 4] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_LAZYTIME, "lazytime"),
];

/// Words of a mount table for attributes of a mount, `MOUNT_ATTR_*`, without those for access
/// times.
const MOUNT_FLAGS: [(u64, &str); 4] = [
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
];

/// Returns the words of the flags that are set, separated by commas. `rw` comes first if `ro` is
/// not set.
fn flag_words(table: &[(u64, &str)], flags: u64) -> String {
    let set = table.iter().filter(|(flag, _)| flags & flag != 0);
    let first = (flags & 1 == 0).then_some("rw");
    let all: Vec<&str> = first
        .into_iter()
        .chain(set.map(|(_, word)| *word))
        .collect();
    all.join(",")
}

/// Returns the options of a mount as a mount table has them.
fn attributes(flags: u64) -> String {
    let mut all = flag_words(&MOUNT_FLAGS, flags);
    let times = match flags & libc::MOUNT_ATTR__ATIME {
        libc::MOUNT_ATTR_NOATIME => Some("noatime"),
        libc::MOUNT_ATTR_RELATIME => Some("relatime"),
        _ => None,
    };
    let directories = (flags & libc::MOUNT_ATTR_NODIRATIME != 0).then_some("nodiratime");
    // The order is the kernel's: `nodiratime` is between `noatime` and `relatime`.
    let (before, after) = match times {
        Some("relatime") => (directories, times),
        _ => (times, directories),
    };
    let links = (flags & libc::MOUNT_ATTR_NOSYMFOLLOW != 0).then_some("nosymfollow");
    let mapped = (flags & libc::MOUNT_ATTR_IDMAP != 0).then_some("idmapped");
    for word in [before, after, links, mapped].into_iter().flatten() {
        all.push(',');
        all.push_str(word);
    }
    all
}

/// Decodes the octal escapes of a field, which stand for space, tab, newline and backslash.
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

/// Returns the whole mount table of the calling thread. Run it on the host's thread for the host's
/// table.
///
/// # Errors
/// Fails if procfs cannot be read.
pub fn read() -> std::io::Result<Vec<Entry>> {
    read_file("/proc/thread-self/mountinfo")
}

/// Returns the mount table in a file of procfs.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn read_file(file: impl AsRef<Path>) -> std::io::Result<Vec<Entry>> {
    let file = std::fs::File::open(file)?;
    let mut entries = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        entries.extend(Entry::parse(&line?));
    }
    Ok(entries)
}

/// Returns the entry of the mount with these ids; `unique` is 0 if it is not known. Uses
/// statmount(2) if possible. Otherwise searches the table for `id`.
///
/// # Errors
/// Fails if procfs cannot be read, or statmount(2) fails unexpectedly.
pub fn find(id: u64, unique: u64) -> std::io::Result<Option<Entry>> {
    match query(unique) {
        Some(answer) => answer,
        None => find_in_table(id),
    }
}

/// Returns the entry of the mount with this unique id by statmount(2). The outer none means that
/// the call is not available: the kernel is too old, or the seccomp filter does not know the call
/// (docker's before 2025). The inner none means that there is no such mount.
pub fn query(unique: u64) -> Option<std::io::Result<Option<Entry>>> {
    if unique == 0 {
        return None;
    }
    match statmount::read(unique) {
        Ok(stat) => Some(Ok(Entry::from_stat(stat, unique))),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Some(Ok(None)),
            Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL) => None,
            _ => Some(Err(error)),
        },
    }
}

/// Returns the first entry of the table with this id.
fn find_in_table(id: u64) -> std::io::Result<Option<Entry>> {
    let mut found = None;
    search(
        |listed| listed == id,
        |entry| {
            found = Some(entry);
            Ok(true)
        },
    )?;
    Ok(found)
}

/// Passes the entries of the calling thread's table whose ids are wanted to `visit`, one by one,
/// until it returns true. Entries that are not wanted are not parsed.
///
/// # Errors
/// Fails if procfs cannot be read, or `visit` fails.
pub fn search(
    is_wanted: impl Fn(u64) -> bool,
    mut visit: impl FnMut(Entry) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    let mut table = BufReader::new(std::fs::File::open("/proc/thread-self/mountinfo")?);
    let mut line = Vec::new();
    while table.read_until(b'\n', &mut line)? > 0 {
        let id = line.split(|byte| *byte == b' ').next();
        let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        if id.is_some_and(&is_wanted)
            && let Some(entry) = Entry::parse(line.strip_suffix(b"\n").unwrap_or(&line))
            && visit(entry)?
        {
            break;
        }
        line.clear();
    }
    Ok(())
}

/// Returns the mounts in the calling thread's namespace that are newer than the one with this
/// unique id. Returns all mounts if the id is 0, or listmount(2) or statmount(2) is not available.
///
/// # Errors
/// Fails if procfs cannot be read, or statmount(2) fails unexpectedly.
pub fn newer_than(unique: u64) -> std::io::Result<Vec<Entry>> {
    let Some(ids) = (unique != 0)
        .then(|| statmount::list_after(unique).ok())
        .flatten()
    else {
        return read();
    };
    let mut entries = Vec::new();
    for id in ids {
        match query(id) {
            // A mount may be gone since it was listed.
            Some(answer) => entries.extend(answer?),
            None => return read(),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_optional_fields_and_escapes() {
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
    fn parse_rejects_incomplete_lines() {
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
    fn statmount_and_the_table_have_the_same_entry() {
        let table = read().unwrap();
        let Some(ids) = statmount::tests::if_supported(statmount::list_after(0)) else {
            return;
        };
        let mut compared = 0;
        for unique in ids {
            let Some(queried) = query(unique) else {
                // Linux 6.8 to 6.12 list mounts, but do not report all fields of them.
                let read = statmount::tests::if_supported(statmount::read(unique));
                assert!(read.is_none());
                return;
            };
            let Some(mut entry) = queried.unwrap() else {
                continue;
            };
            let parent = query(entry.parent_unique).and_then(|parent| parent.unwrap());
            assert!(
                parent.is_none_or(|parent| parent.id == entry.parent),
                "{entry:?}"
            );
            let line = table.iter().find(|line| line.id == entry.id);
            (entry.unique, entry.parent_unique) = (0, 0);
            // Another process may mount meanwhile.
            if let Some(line) = line.filter(|line| line.target == entry.target) {
                assert_eq!(*line, entry);
                compared += 1;
            }
        }
        assert!(compared > 0);
    }

    #[test]
    fn a_mount_is_found_by_its_id() {
        for entry in read().unwrap().into_iter().take(3) {
            let found = find(entry.id, 0).unwrap();
            assert_eq!(found.map(|found| found.target), Some(entry.target));
        }
        assert_eq!(find(0, 0).unwrap(), None);
        assert!(query(0).is_none());
        // A table has no unique ids.
        assert_eq!(newer_than(0).unwrap()[0].unique, 0);
        // No mount has this unique id.
        if let Some(answer) = query(u64::MAX) {
            assert_eq!(answer.unwrap(), None);
            assert_eq!(newer_than(u64::MAX - 1).unwrap(), []);
        }
    }

    #[test]
    fn fuse_file_systems_are_known_by_their_type() {
        for (fs_type, is_fuse) in [
            ("fuse", true),
            ("fuseblk", true),
            ("fuse.sshfs", true),
            ("fusectl", false),
            ("nfs", false),
        ] {
            let line = format!("1 2 0:1 / /a rw - {fs_type} t rw");
            let entry = Entry::parse(line.as_bytes()).unwrap();
            assert_eq!(entry.is_fuse(), is_fuse, "{fs_type}");
        }
    }

    #[test]
    fn attributes_are_in_the_order_of_the_table() {
        let all = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODIRATIME;
        assert_eq!(attributes(all), "ro,nosuid,nodiratime,relatime");
        let all = libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NODIRATIME;
        assert_eq!(attributes(all), "rw,noatime,nodiratime");
        assert_eq!(attributes(libc::MOUNT_ATTR_STRICTATIME), "rw");
        let all = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSYMFOLLOW;
        assert_eq!(attributes(all), "rw,nodev,relatime,nosymfollow");
    }

    #[test]
    fn unescape_keeps_a_backslash_without_an_octal_number() {
        assert_eq!(unescape(br"a\9b\"), br"a\9b\");
        assert_eq!(unescape(br"\040\777\089"), br" \777\089");
    }
}
