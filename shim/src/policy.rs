//! What happens to a call: pure, so that every rule is tested without root.

use spc_shim_config::words::{same, split_once, strip};
use spc_shim_config::{Config, Operation};

use crate::sys::Inode;
use crate::text::number;

/// What a call does to a mount table, as the kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new mount.
    New,
    /// The same tree at another place as well.
    Bind,
    /// A mount moved to another place.
    Move,
    /// Flags or options of a mount.
    Remount,
    /// Propagation of a mount.
    Propagation,
    /// A mount taken away.
    Unmount,
    /// A descriptor of a mount.
    Handle,
    /// A descriptor of a copy of a mount.
    Copy,
}

impl Change {
    /// Order and precedence are those of the kernel's `path_mount`.
    pub fn of_mount_flags(flags: u64) -> Self {
        const MAGIC_MASK: u64 = 0xffff_0000;
        let flags = if flags & MAGIC_MASK == libc::MS_MGC_VAL {
            flags & !MAGIC_MASK
        } else {
            flags
        };
        let propagation = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
        if flags & libc::MS_REMOUNT != 0 {
            Self::Remount
        } else if flags & libc::MS_BIND != 0 {
            Self::Bind
        } else if flags & propagation != 0 {
            Self::Propagation
        } else if flags & libc::MS_MOVE != 0 {
            Self::Move
        } else {
            Self::New
        }
    }

    /// The operation that the settings must name for this to go to the host whatever the target.
    #[inline(never)]
    pub fn operation(self) -> Option<Operation> {
        match self {
            Self::New | Self::Unmount => None,
            Self::Bind | Self::Copy => Some(Operation::Bind),
            Self::Move => Some(Operation::Move),
            // Reconfiguring a file system begins with a descriptor of it.
            Self::Remount | Self::Handle => Some(Operation::Remount),
            Self::Propagation => Some(Operation::Propagation),
        }
    }

    /// Whether the topmost mount at the target is another one afterwards.
    pub fn attaches(self) -> bool {
        matches!(self, Self::New | Self::Bind | Self::Move)
    }
}

/// Why a call went where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// It never came to a decision.
    None,
    /// The kernel will not take the arguments either.
    Arguments,
    /// A mount that is attached nowhere.
    Detached,
    /// Nothing in the settings says that it is for the host.
    Unnamed,
    /// The target could not be found, and will not be by the kernel.
    Unresolved,
    /// An unmount of what is mounted in the caller's own view.
    Own,
    /// Unusable settings, and nothing that could go wrong.
    Settings,
    /// The launcher's claim.
    Claim,
    /// The type of a new mount, or of the mount to be taken away.
    Type,
    /// An exact target.
    Target,
    /// An operation that the settings name.
    Operation,
    /// A descriptor of a mount of the host.
    Descriptor,
}

/// The decision for one call, and why.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The container's own business.
    Pass,
    /// To this path on the host.
    Carry { reason: Reason, host: &'a [u8] },
    /// An unmount: whose mount this is shows only there.
    Look { host: &'a [u8], mapped: bool },
}

/// Whether a new mount of this type goes to the host.
#[inline(never)]
pub fn names_type(config: &Config, kind: &[u8]) -> bool {
    config.types().any(|pattern| match pattern.split_last() {
        Some((b'*', start)) => strip(kind, start).is_some(),
        _ => same(kind, pattern),
    })
}

/// Why a call goes to the host whatever its target; `named`: the type of a new mount is one for the host.
#[inline(never)]
pub fn demand(config: &Config, change: Change, named: bool) -> Option<Reason> {
    if named && change == Change::New {
        return Some(Reason::Type);
    }
    let operation = change.operation()?;
    config.names(operation).then_some(Reason::Operation)
}

/// Decides by the canonical target, which the launcher has not claimed, and what [`demand`] said.
pub fn decide<'a>(
    config: &'a Config,
    change: Change,
    demand: Option<Reason>,
    target: &'a [u8],
) -> Verdict<'a> {
    let mapped = map_host(config, target);
    let host = mapped.unwrap_or(target);
    if let Some(host) = config.target(target, host) {
        let reason = Reason::Target;
        return Verdict::Carry { reason, host };
    }
    if let Some(reason) = demand {
        return Verdict::Carry { reason, host };
    }
    if change == Change::Unmount {
        return Verdict::Look {
            host,
            mapped: mapped.is_some(),
        };
    }
    Verdict::Pass
}

/// The same path on the host, when this one is at or below a place where the host's root is seen.
#[inline(never)]
pub fn map_host<'a>(config: &Config, path: &'a [u8]) -> Option<&'a [u8]> {
    config.hosts().find_map(|host| match strip(path, host)? {
        [] => Some(b"/".as_slice()),
        rest @ [b'/', ..] => Some(rest),
        _ => None,
    })
}

/// The claims directory and the ID of a stand-in, whose claim decides before everything else: a directory of lower
/// hex digits directly below the claims directory.
pub fn claim_id<'a>(config: &'a Config, path: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let dir = config.claims()?;
    let id = strip(strip(path, dir)?, b"/")?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    ((1..=64).contains(&id.len()) && id.iter().all(is_hex)).then_some((dir, id))
}

/// What the launcher says about a stand-in.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    /// The launcher brings the mount to the host itself.
    Stay,
    /// The mount belongs on this directory of the host.
    Carry { inode: Inode, path: &'a [u8] },
}

/// Reads `MODE MAJOR:MINOR INO PATH`.
pub fn parse_claim(text: &[u8]) -> Option<Claim<'_>> {
    if strip(text, b"stay ").is_some() {
        return Some(Claim::Stay);
    }
    let mut path = strip(text, b"carry ")?;
    let inode = Inode {
        major: take_number(&mut path, b':')? as u32,
        minor: take_number(&mut path, b' ')? as u32,
        number: take_number(&mut path, b' ')?,
    };
    path.starts_with(b"/")
        .then_some(Claim::Carry { inode, path })
}

/// Takes a number and the byte that ends it off the text.
#[inline(never)]
fn take_number(text: &mut &[u8], end: u8) -> Option<u64> {
    let (word, rest) = split_once(text, end);
    *text = rest?;
    number(word)
}

/// Reads `MNTID UNIQUEID`.
pub fn parse_claimed_mount(mut text: &[u8]) -> Option<(u64, u64)> {
    Some((take_number(&mut text, b' ')?, number(text)?))
}

/// The descriptor, and the rest with its slash, of a path like `/proc/self/fd/7/rest`. Recognised by its words,
/// because /proc may belong to another PID namespace, where it leads nowhere.
pub fn fd_path(path: &[u8], pid: u64) -> Option<(i32, &[u8])> {
    let mut rest = strip(path, b"/dev/");
    if rest.is_none() {
        let (owner, after) = split_once(strip(path, b"/proc/")?, b'/');
        if owner == b"self" || number(owner) == Some(pid) {
            rest = after;
        }
    }
    let rest = strip(rest?, b"fd/")?;
    let end = split_once(rest, b'/').0.len();
    let (fd, rest) = rest.split_at_checked(end)?;
    Some((number(fd)? as i32, rest))
}

/// The type of a FUSE mount names only who made it; such a source is a label, not a path.
pub fn is_fuse(kind: &[u8]) -> bool {
    kind == b"fuse" || strip(kind, b"fuse.").is_some()
}

/// Splits before the last name; trailing slashes belong to neither. The first part keeps its slash.
#[inline(never)]
pub fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let mut name = path;
    while let Some((b'/', shorter)) = name.split_last() {
        name = shorter;
    }
    let mut start = name.len();
    while start > 0 && name.get(start - 1) != Some(&b'/') {
        start -= 1;
    }
    if name.is_empty() {
        start = path.len();
    }
    (
        path.get(..start).unwrap_or(&[]),
        name.get(start..).unwrap_or(&[]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse_file(text.as_bytes()).unwrap()
    }

    #[test]
    fn flags_are_read_in_the_kernels_order() {
        use libc::*;
        for (flags, change) in [
            (0, Change::New),
            (MS_RDONLY | MS_NOSUID, Change::New),
            (MS_REMOUNT | MS_BIND, Change::Remount),
            (MS_REMOUNT | MS_PRIVATE, Change::Remount),
            (MS_BIND | MS_REC, Change::Bind),
            (MS_BIND | MS_PRIVATE, Change::Bind),
            (MS_PRIVATE | MS_MOVE, Change::Propagation),
            (MS_UNBINDABLE, Change::Propagation),
            (MS_MOVE, Change::Move),
            (MS_MGC_VAL, Change::New),
            (MS_MGC_VAL | MS_BIND, Change::Bind),
        ] {
            assert_eq!(Change::of_mount_flags(flags), change, "{flags:#x}");
        }
    }

    #[test]
    fn types_match_whole_or_by_their_start() {
        let config = config("type fuse fuse.* nfs");
        for kind in [&b"fuse"[..], b"fuse.glusterfs", b"fuse.", b"nfs"] {
            assert!(names_type(&config, kind));
        }
        for kind in [&b""[..], b"fusectl", b"nfs4", b"tmpfs", b"Fuse"] {
            assert!(!names_type(&config, kind));
        }
    }

    #[test]
    fn only_what_is_named_goes_to_the_host() {
        let config = config("target /data /srv/x=/mnt/x\noperation bind");
        let decide =
            |change, named, target| decide(&config, change, demand(&config, change, named), target);
        let to = |reason, host| Verdict::Carry { reason, host };
        assert_eq!(decide(Change::New, false, b"/mnt"), Verdict::Pass);
        assert_eq!(
            decide(Change::New, true, b"/mnt"),
            to(Reason::Type, b"/mnt")
        );
        assert_eq!(
            decide(Change::New, true, b"/host/mnt"),
            to(Reason::Type, b"/mnt")
        );
        assert_eq!(decide(Change::New, true, b"/host"), to(Reason::Type, b"/"));
        assert_eq!(
            decide(Change::New, true, b"/hostess"),
            to(Reason::Type, b"/hostess")
        );
        assert_eq!(
            decide(Change::New, false, b"/data"),
            to(Reason::Target, b"/data")
        );
        assert_eq!(
            decide(Change::New, false, b"/host/data"),
            to(Reason::Target, b"/data")
        );
        assert_eq!(decide(Change::New, false, b"/data/x"), Verdict::Pass);
        assert_eq!(
            decide(Change::Unmount, false, b"/srv/x"),
            to(Reason::Target, b"/mnt/x")
        );
        assert_eq!(
            decide(Change::Bind, false, b"/m"),
            to(Reason::Operation, b"/m")
        );
        assert_eq!(
            decide(Change::Copy, false, b"/m"),
            to(Reason::Operation, b"/m")
        );
        for change in [Change::Remount, Change::Move, Change::Propagation] {
            assert_eq!(decide(change, true, b"/m"), Verdict::Pass);
        }
        assert_eq!(
            decide(Change::Unmount, false, b"/host/m"),
            Verdict::Look {
                host: b"/m",
                mapped: true
            }
        );
    }

    #[test]
    fn stand_ins_are_known_by_their_place() {
        let config = config("type fuse");
        assert_eq!(
            claim_id(&config, b"/spc/targets/ab"),
            Some((&b"/spc/targets"[..], &b"ab"[..]))
        );
        for other in [
            &b"/spc/targets/"[..],
            b"/spc/targets/AB",
            b"/spc/targets/ab/c",
            b"/spc/targetsab",
        ] {
            assert_eq!(claim_id(&config, other), None);
        }
    }

    #[test]
    fn claims_hold_any_path() {
        assert_eq!(
            parse_claim(b"carry 8:1 77 /mnt/a b\nc"),
            Some(Claim::Carry {
                inode: Inode {
                    major: 8,
                    minor: 1,
                    number: 77
                },
                path: b"/mnt/a b\nc"
            })
        );
        assert_eq!(parse_claim(b"stay 0:0 0 /x"), Some(Claim::Stay));
        for bad in [
            &b""[..],
            b"carry",
            b"carry 8:1 77",
            b"carry 8:1 77 x",
            b"carry 8 77 /x",
            b"go 8:1 77 /x",
        ] {
            assert_eq!(parse_claim(bad), None);
        }
        assert_eq!(parse_claimed_mount(b"12 0"), Some((12, 0)));
        assert_eq!(parse_claimed_mount(b"12"), None);
    }

    #[test]
    fn descriptor_paths_need_no_proc() {
        assert_eq!(fd_path(b"/proc/self/fd/7", 1), Some((7, &b""[..])));
        assert_eq!(fd_path(b"/dev/fd/0//a/b", 1), Some((0, &b"//a/b"[..])));
        assert_eq!(fd_path(b"/proc/42/fd/3", 42), Some((3, &b""[..])));
        for other in [
            &b"/proc/42/fd/3"[..],
            b"/proc/self/fd/",
            b"/proc/self/fd/x",
            b"/proc/self/fdinfo/1",
            b"/mnt",
        ] {
            assert_eq!(fd_path(other, 1), None);
        }
    }

    #[test]
    fn the_last_name_is_found() {
        for (path, head, last) in [
            ("/a/b", "/a/", "b"),
            ("/a//b//", "/a//", "b"),
            ("b", "", "b"),
            ("/b", "/", "b"),
            ("/", "/", ""),
            ("//", "//", ""),
            ("", "", ""),
            ("a/..", "a/", ".."),
        ] {
            assert_eq!(
                split_last(path.as_bytes()),
                (head.as_bytes(), last.as_bytes()),
                "{path}"
            );
        }
    }
}
