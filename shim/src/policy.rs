//! Rules that decide where a call is made. All functions are pure, so that every rule is tested
//! without root.

use spc_shim_config::words::{same, split_once, strip};
use spc_shim_config::{Config, Operation};

/// Effect of a call on a mount table, by the rules of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new mount.
    New,
    /// A tree attached at a second mount point (bind mount).
    Bind,
    /// A mount moved to another mount point.
    Move,
    /// New flags or options for a mount.
    Remount,
    /// New propagation type for a mount.
    Propagation,
    /// An unmount.
    Unmount,
    /// A descriptor of a mount. Nothing changes.
    Handle,
    /// A descriptor of a detached copy of a mount.
    Copy,
}

impl Change {
    /// Returns the effect of mount(2) with these flags, tested in the order of the kernel's
    /// `path_mount`.
    pub fn from_mount_flags(flags: u64) -> Self {
        // The kernel ignores this value in the upper half.
        let is_magic = flags & 0xffff_0000 == libc::MS_MGC_VAL;
        let propagation = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
        if flags & libc::MS_REMOUNT != 0 {
            Self::Remount
        } else if flags & libc::MS_BIND != 0 {
            Self::Bind
        } else if flags & propagation != 0 && !is_magic {
            Self::Propagation
        } else if flags & libc::MS_MOVE != 0 {
            Self::Move
        } else {
            Self::New
        }
    }

    /// Returns the operation whose setting redirects this change whatever its target.
    #[inline(never)]
    pub fn operation(self) -> Option<Operation> {
        match self {
            Self::New | Self::Unmount => None,
            Self::Bind | Self::Copy => Some(Operation::Bind),
            Self::Move => Some(Operation::Move),
            // Reconfiguring a file system with fspick(2) begins with a descriptor of its mount.
            Self::Remount | Self::Handle => Some(Operation::Remount),
            Self::Propagation => Some(Operation::Propagation),
        }
    }

    /// Returns whether the change attaches a mount at the target.
    pub fn attaches(self) -> bool {
        matches!(self, Self::New | Self::Bind | Self::Move)
    }
}

/// Reason for the destination of a call. Its number selects the word in reports, after `REASONS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// No decision was reached.
    None,
    /// The settings are unusable.
    Settings,
    /// A redirect of the launcher.
    Redirect,
    /// The type of the new mount, or of the mount to unmount.
    Type,
    /// A target that the settings list.
    Target,
    /// An operation that the settings list.
    Operation,
    /// A descriptor of a mount on the host.
    Descriptor,
    /// A detached mount whose type is not known, which the settings may redirect.
    Origin,
}

/// Decision for one call by its target.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The call is made in the container.
    Local,
    /// The call is redirected to the host.
    ToHost {
        /// Reason for the decision.
        reason: Reason,
        /// Path of the target on the host.
        host: &'a [u8],
    },
    /// The unmount is redirected if a mount of a redirected type is at the target on the host.
    HostIfMounted {
        /// Path of the target on the host.
        host: &'a [u8],
        /// Whether the target is below a path at which the container sees the host's root.
        mapped: bool,
    },
}

/// Returns whether the settings redirect new mounts of this type.
#[inline(never)]
pub fn is_redirected_type(config: &Config, fs_type: &[u8]) -> bool {
    config.types().any(|pattern| match pattern.split_last() {
        Some((b'*', start)) => strip(fs_type, start).is_some(),
        _ => same(fs_type, pattern),
    })
}

/// Returns the reason to redirect a call whatever its target, if there is one. `redirected_type` is
/// the result of [`is_redirected_type`] for a new mount.
#[inline(never)]
pub fn reason_for_any_target(
    config: &Config,
    change: Change,
    redirected_type: bool,
) -> Option<Reason> {
    if redirected_type && change == Change::New {
        return Some(Reason::Type);
    }
    let operation = change.operation()?;
    config
        .redirects_operation(operation)
        .then_some(Reason::Operation)
}

/// Decides for a canonical target that has no redirect of the launcher. `reason_for_any` is the
/// result of [`reason_for_any_target`].
pub fn decide<'a>(
    config: &'a Config,
    change: Change,
    reason_for_any: Option<Reason>,
    target: &'a [u8],
) -> Verdict<'a> {
    let mapped = to_host_path(config, target);
    let host = mapped.unwrap_or(target);
    if let Some(host) = config.host_target(target, host) {
        let reason = Reason::Target;
        return Verdict::ToHost { reason, host };
    }
    if let Some(reason) = reason_for_any {
        return Verdict::ToHost { reason, host };
    }
    if change == Change::Unmount {
        return Verdict::HostIfMounted {
            host,
            mapped: mapped.is_some(),
        };
    }
    Verdict::Local
}

/// Returns the path on the host, if `path` is at or below a directory where the container sees the
/// host's root.
#[inline(never)]
pub fn to_host_path<'a>(config: &Config, path: &'a [u8]) -> Option<&'a [u8]> {
    config
        .host_roots()
        .find_map(|host| match strip(path, host)? {
            [] => Some(b"/".as_slice()),
            rest @ [b'/', ..] => Some(rest),
            _ => None,
        })
}

/// Returns the directory of redirects and the id of a placeholder directory, if `path` is one.
///
/// A placeholder is directly below the directory of redirects. Its name, the id, consists of
/// lower-case hexadecimal digits. The redirect of a placeholder precedes every other rule.
pub fn placeholder_id<'a>(config: &'a Config, path: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let dir = config.redirects()?;
    let id = strip(strip(path, dir)?, b"/")?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    ((1..=64).contains(&id.len()) && id.iter().all(is_hex)).then_some((dir, id))
}

/// Redirect that the launcher wrote for a placeholder directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect<'a> {
    /// The mount is made in the container, and the launcher brings it to the host.
    Local,
    /// The mount is made on the host, on the directory with this path.
    ToHost(&'a [u8]),
}

/// Parses a redirect, `MODE MAJOR:MINOR INODE PATH`. The mode `carry` redirects calls to the host;
/// `stay` leaves them local. Device and inode number are compared as text, see `redirect`.
pub fn parse_redirect(text: &[u8]) -> Option<Redirect<'_>> {
    if strip(text, b"stay ").is_some() {
        return Some(Redirect::Local);
    }
    strip(text, b"carry ")?;
    let start = split_once(text, b'/').0.len();
    text.get(start..).map(Redirect::ToHost)
}

/// Returns whether the type is FUSE, whose mount source is a label and not a path.
pub fn is_fuse(fs_type: &[u8]) -> bool {
    strip(fs_type, b"fuse").is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'.'))
}

/// Splits a path before its last component. The first part keeps its slash; slashes at the end are
/// in neither part.
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
    fn mount_flags_are_tested_in_the_kernels_order() {
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
            assert_eq!(Change::from_mount_flags(flags), change, "{flags:#x}");
        }
    }

    #[test]
    fn types_match_whole_or_by_prefix() {
        let config = config("type fuse fuse.* nfs");
        for fs_type in [&b"fuse"[..], b"fuse.glusterfs", b"fuse.", b"nfs"] {
            assert!(is_redirected_type(&config, fs_type));
        }
        for fs_type in [&b""[..], b"fusectl", b"nfs4", b"tmpfs", b"Fuse"] {
            assert!(!is_redirected_type(&config, fs_type));
        }
    }

    #[test]
    fn only_calls_that_the_settings_select_go_to_the_host() {
        let config = config("target /data /srv/x=/mnt/x\noperation bind");
        let decide = |change, redirected_type, target| {
            decide(
                &config,
                change,
                reason_for_any_target(&config, change, redirected_type),
                target,
            )
        };
        let to = |reason, host| Verdict::ToHost { reason, host };
        assert_eq!(decide(Change::New, false, b"/mnt"), Verdict::Local);
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
        assert_eq!(decide(Change::New, false, b"/data/x"), Verdict::Local);
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
            assert_eq!(decide(change, true, b"/m"), Verdict::Local);
        }
        assert_eq!(
            decide(Change::Unmount, false, b"/host/m"),
            Verdict::HostIfMounted {
                host: b"/m",
                mapped: true
            }
        );
    }

    #[test]
    fn placeholders_are_recognised_by_their_path() {
        let config = config("type fuse");
        assert_eq!(
            placeholder_id(&config, b"/spc/targets/ab"),
            Some((&b"/spc/targets"[..], &b"ab"[..]))
        );
        for other in [
            &b"/spc/targets/"[..],
            b"/spc/targets/AB",
            b"/spc/targets/ab/c",
            b"/spc/targetsab",
        ] {
            assert_eq!(placeholder_id(&config, other), None);
        }
    }

    #[test]
    fn redirects_hold_any_path() {
        assert_eq!(
            parse_redirect(b"carry 8:1 77 /mnt/a b\nc"),
            Some(Redirect::ToHost(b"/mnt/a b\nc"))
        );
        assert_eq!(parse_redirect(b"stay 0:0 0 /x"), Some(Redirect::Local));
        // An empty path names no file.
        assert_eq!(
            parse_redirect(b"carry 8:1 77 x"),
            Some(Redirect::ToHost(b""))
        );
        for bad in [&b""[..], b"carry", b"go 8:1 77 /x"] {
            assert_eq!(parse_redirect(bad), None);
        }
    }

    #[test]
    fn the_last_component_is_split_off() {
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
