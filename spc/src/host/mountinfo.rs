//! One line of `/proc/PID/mountinfo`, as proc_pid_mountinfo(5) describes it, or the same by statmount(2), which needs no
//! reading of the table.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sys::statmount::{self, MountStat};

/// How often to look for a mount while somebody renames directories on the way to it.
pub const LOOKS: usize = 20;

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
    /// Mount id that is never used again; 0 where the entry is from a table, which does not have it.
    #[serde(skip)]
    pub unique: u64,
    /// The same of the mount this one is attached to.
    #[serde(skip)]
    pub parent_unique: u64,
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
            unique: 0,
            parent_unique: 0,
        })
    }

    /// The entry that a table would have of it; none if it is not below the root of whoever asked.
    fn from_stat(known: MountStat, unique: u64) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let group = |number: u64| (number != 0).then_some(number);
        let mut fs_type = text(&known.fs_type);
        if !known.subtype.is_empty() {
            fs_type = format!("{fs_type}.{}", text(&known.subtype));
        }
        let mut options = words(&SUPER, u64::from(known.flags));
        if !known.options.is_empty() {
            options = format!("{options},{}", text(&unescape(&known.options)));
        }
        let (major, minor) = known.device;
        (!known.target.is_empty()).then(|| Self {
            id: known.id,
            parent: known.parent,
            device: format!("{major}:{minor}"),
            root: PathBuf::from(OsString::from_vec(known.root)),
            target: PathBuf::from(OsString::from_vec(known.target)),
            attributes: attributes(known.attributes),
            peers: group(known.peers),
            master: group(known.master),
            fs_type,
            source: text(&known.source),
            options,
            unique,
            parent_unique: known.parent_unique,
        })
    }

    /// Whether a daemon answers for it.
    pub fn is_fuse(&self) -> bool {
        matches!(&*self.fs_type, "fuse" | "fuseblk") || self.fs_type.starts_with("fuse.")
    }
}

/// The words of a mount table for flags of a file system, `SB_*`.
const SUPER: [(u64, &str); 4] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_LAZYTIME, "lazytime"),
];

/// The words of a mount table for those of a mount, `MOUNT_ATTR_*`, without those for times of access.
const MOUNT: [(u64, &str); 4] = [
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
];

/// `rw` or the first of these words, then the others whose flags are set.
fn words(known: &[(u64, &str)], flags: u64) -> String {
    let set = known.iter().filter(|(flag, _)| flags & flag != 0);
    let first = (flags & 1 == 0).then_some("rw");
    let all: Vec<&str> = first
        .into_iter()
        .chain(set.map(|(_, word)| *word))
        .collect();
    all.join(",")
}

fn attributes(flags: u64) -> String {
    let mut all = words(&MOUNT, flags);
    let times = match flags & libc::MOUNT_ATTR__ATIME {
        libc::MOUNT_ATTR_NOATIME => Some("noatime"),
        libc::MOUNT_ATTR_RELATIME => Some("relatime"),
        _ => None,
    };
    let directories = (flags & libc::MOUNT_ATTR_NODIRATIME != 0).then_some("nodiratime");
    // In the order that the kernel has them.
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

/// The entry of the mount with this id, and this one that is never used again, 0 if that is not known. The kernel is
/// asked for that one mount; where it cannot be, the table is read as far as needed, and goes by the first.
///
/// # Errors
/// procfs cannot be read.
pub fn find(id: u64, unique: u64) -> std::io::Result<Option<Entry>> {
    match ask(unique) {
        Some(answer) => answer,
        None => find_in_table(id),
    }
}

/// The entry of the mount with this id that is never used again, by statmount(2). None if the kernel cannot be asked: it is
/// too old, or a filter of system calls is older than it (docker's before 2025 is).
pub fn ask(unique: u64) -> Option<std::io::Result<Option<Entry>>> {
    if unique == 0 {
        return None;
    }
    match statmount::read(unique) {
        Ok(known) => Some(Ok(Entry::from_stat(known, unique))),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Some(Ok(None)),
            Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL) => None,
            _ => Some(Err(error)),
        },
    }
}

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

/// Looks at the entries of the calling thread's table whose ids are wanted, one by one, until one is `found`.
///
/// # Errors
/// procfs cannot be read, or whatever `found` says.
pub fn search(
    wanted: impl Fn(u64) -> bool,
    mut found: impl FnMut(Entry) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    let mut table = BufReader::new(std::fs::File::open("/proc/thread-self/mountinfo")?);
    let mut line = Vec::new();
    while table.read_until(b'\n', &mut line)? > 0 {
        let id = line.split(|byte| *byte == b' ').next();
        let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        if id.is_some_and(&wanted)
            && let Some(entry) = Entry::parse(line.strip_suffix(b"\n").unwrap_or(&line))
            && found(entry)?
        {
            break;
        }
        line.clear();
    }
    Ok(())
}

/// The mounts of the calling thread's namespace that are younger than the one with this id that is never used again. All
/// of them where the kernel cannot be asked for those.
///
/// # Errors
/// procfs cannot be read.
pub fn younger(unique: u64) -> std::io::Result<Vec<Entry>> {
    let Some(ids) = (unique != 0)
        .then(|| statmount::after(unique).ok())
        .flatten()
    else {
        return read();
    };
    let mut entries = Vec::new();
    for id in ids {
        match ask(id) {
            // It may have gone meanwhile.
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
    fn the_kernel_says_of_one_mount_what_the_table_says() {
        let table = read().unwrap();
        let Some(ids) = statmount::tests::asked(statmount::after(0)) else {
            return;
        };
        let mut compared = 0;
        for unique in ids {
            let Some(asked) = ask(unique) else {
                // Linux 6.8 to 6.12 list mounts, and do not tell all of them.
                statmount::tests::asked(statmount::read(unique));
                return;
            };
            let Some(mut entry) = asked.unwrap() else {
                continue;
            };
            let on = ask(entry.parent_unique).and_then(|on| on.unwrap());
            assert!(on.is_none_or(|on| on.id == entry.parent), "{entry:?}");
            let plain = table.iter().find(|plain| plain.id == entry.id);
            (entry.unique, entry.parent_unique) = (0, 0);
            // Others may mount meanwhile.
            if let Some(plain) = plain.filter(|plain| plain.target == entry.target) {
                assert_eq!(*plain, entry);
                compared += 1;
            }
        }
        assert!(compared > 0);
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
    fn a_lone_backslash_stays() {
        assert_eq!(unescape(br"a\9b\"), br"a\9b\");
        assert_eq!(unescape(br"\040\777"), br" \777");
    }
}
