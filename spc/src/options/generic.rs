//! Options that do not depend on the file system: those of mount(8), and spc's own.

use libc::{
    MOUNT_ATTR__ATIME as ATIME, MOUNT_ATTR_NOATIME as NOATIME, MOUNT_ATTR_NODEV as NODEV,
    MOUNT_ATTR_NODIRATIME as NODIRATIME, MOUNT_ATTR_NOEXEC as NOEXEC, MOUNT_ATTR_NOSUID as NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW as NOSYMFOLLOW, MOUNT_ATTR_RDONLY as RDONLY,
    MOUNT_ATTR_STRICTATIME as STRICTATIME,
};

use crate::error::{Error, Result};

/// Effect of an option of mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Sets and clears attributes of the mount, `MOUNT_ATTR_*`. Helpers get the option as well.
    Attributes { set: u64, clear: u64 },
    /// Makes mount and file system read-only or writable.
    ReadOnly(bool),
    /// Names the kernel's default, which few helpers know: takes back this earlier option.
    TakesBack(&'static str),
    /// Flag of the file system, which gets it.
    Superblock,
    /// Stands for these options; later ones override them.
    Implies(&'static [&'static str]),
    /// For mount(8), systemd and other readers of fstab(5), not for the file system.
    Comment,
}

const fn sets(set: u64) -> Effect {
    let clear = if set & ATIME == 0 { 0 } else { ATIME };
    Effect::Attributes { set, clear }
}

const fn clears(clear: u64) -> Effect {
    Effect::Attributes { set: 0, clear }
}

/// Options of mount(8) without a value.
const TABLE: &[(&str, Effect)] = &[
    ("ro", Effect::ReadOnly(true)),
    ("rw", Effect::ReadOnly(false)),
    ("nosuid", sets(NOSUID)),
    ("suid", clears(NOSUID)),
    ("nodev", sets(NODEV)),
    ("dev", clears(NODEV)),
    ("noexec", sets(NOEXEC)),
    ("exec", clears(NOEXEC)),
    ("noatime", sets(NOATIME)),
    ("atime", clears(NOATIME)),
    ("nodiratime", sets(NODIRATIME)),
    ("diratime", clears(NODIRATIME)),
    ("strictatime", sets(STRICTATIME)),
    ("relatime", clears(ATIME)),
    ("nosymfollow", sets(NOSYMFOLLOW)),
    ("symfollow", Effect::TakesBack("nosymfollow")),
    ("nostrictatime", Effect::TakesBack("strictatime")),
    ("norelatime", Effect::TakesBack("relatime")),
    ("sync", Effect::Superblock),
    ("async", Effect::Superblock),
    ("dirsync", Effect::Superblock),
    ("lazytime", Effect::Superblock),
    ("nolazytime", Effect::Superblock),
    ("mand", Effect::Superblock),
    ("nomand", Effect::Superblock),
    ("silent", Effect::Comment),
    ("loud", Effect::Comment),
    // File systems that count versions of inodes do so without the flag.
    ("iversion", Effect::Comment),
    ("noiversion", Effect::Comment),
    ("user", Effect::Implies(&["noexec", "nosuid", "nodev"])),
    ("users", Effect::Implies(&["noexec", "nosuid", "nodev"])),
    ("owner", Effect::Implies(&["nosuid", "nodev"])),
    ("group", Effect::Implies(&["nosuid", "nodev"])),
    ("nouser", Effect::Comment),
    ("nousers", Effect::Comment),
    ("noowner", Effect::Comment),
    ("nogroup", Effect::Comment),
    ("auto", Effect::Comment),
    ("noauto", Effect::Comment),
    ("defaults", Effect::Comment),
    ("nofail", Effect::Comment),
    ("_netdev", Effect::Comment),
    ("comment", Effect::Comment),
    ("seclabel", Effect::Comment),
];

/// SELinux labels, which mount(8) leaves out where SELinux is not enabled.
pub const SELINUX: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Number of values that an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    Either,
}

/// Options of mount(8) and of spc that change the mount itself, and that spc can honour.
const OWN: &[(&str, Takes)] = &[
    ("X-mount.group", Takes::Value),
    ("X-mount.idmap", Takes::Value),
    ("X-mount.mkdir", Takes::Either),
    ("X-mount.mode", Takes::Value),
    // No loop device is ever made.
    ("X-mount.noloop", Takes::Nothing),
    ("X-mount.owner", Takes::Value),
    ("X-mount.subdir", Takes::Value),
    ("x-mount.mkdir", Takes::Either),
    ("x-spc.container", Takes::Nothing),
    ("x-spc.helpers", Takes::Value),
    ("x-spc.mkfs", Takes::Nothing),
    ("x-spc.order", Takes::Value),
    ("x-spc.repair", Takes::Value),
    ("x-spc.servers", Takes::Value),
];

/// Options whose requests mean different mounts when the values differ.
const DISTINGUISHING: [&str; 5] = [
    "X-mount.group",
    "X-mount.idmap",
    "X-mount.mode",
    "X-mount.owner",
    "X-mount.subdir",
];

/// Returns the effect of an option; none if the option belongs to the file system.
pub(super) fn effect(key: &str, value: Option<&str>) -> Option<Effect> {
    if key.starts_with("x-") || key.starts_with("X-") {
        return Some(Effect::Comment);
    }
    match (key, value) {
        ("comment" | "helper" | "uhelper", Some(_)) => return Some(Effect::Comment),
        // mount(8) accepts a layer for the attributes of a mount.
        (_, Some("vfs" | "fs" | "recursive")) | (_, None) => {}
        (_, Some(_)) => return None,
    }
    let (_, effect) = TABLE.iter().find(|(name, _)| *name == key)?;
    match (effect, value) {
        (Effect::Attributes { .. } | Effect::ReadOnly(_), _) | (_, None) => Some(*effect),
        (_, Some(_)) => None,
    }
}

/// Attributes of a mount, `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Attributes that the options set.
    pub set: u64,
    /// Attributes that the options clear, where a mount has them already.
    pub clear: u64,
}

impl Attributes {
    /// Applies an option. It overrides earlier ones.
    pub(super) fn apply(&mut self, key: &str, value: Option<&str>) {
        match effect(key, value) {
            Some(Effect::Attributes { set, clear }) => self.change(set, clear),
            // `ro=fs` concerns the file system alone.
            Some(Effect::ReadOnly(_)) if value == Some("fs") => {}
            Some(Effect::ReadOnly(true)) => self.change(RDONLY, 0),
            Some(Effect::ReadOnly(false)) => self.change(0, RDONLY),
            Some(Effect::TakesBack("nosymfollow")) => self.change(0, NOSYMFOLLOW),
            Some(Effect::TakesBack("strictatime")) if self.set & STRICTATIME != 0 => {
                self.change(0, STRICTATIME);
            }
            Some(Effect::Implies(implied)) => {
                for key in implied {
                    self.apply(key, None);
                }
            }
            _ => {}
        }
    }

    fn change(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear |= set | clear;
        // The access times are one field, which mount_setattr(2) clears as a whole.
        if self.clear & ATIME != 0 {
            self.clear |= ATIME;
        }
    }
}

/// Checks that an option of spc (`x-spc.…`) or of mount(8) (`X-mount.…`) is known and has the value
/// that it takes. Such an option cannot reach a program that would complain about it.
///
/// # Errors
/// Names the option, and the known one with the most similar name.
pub(super) fn check(key: &str, value: Option<&str>) -> Result<()> {
    let lower = key.to_ascii_lowercase();
    if !lower.starts_with("x-spc.") && !lower.starts_with("x-mount.") {
        return Ok(());
    }
    let bad = |why: &str| Error::usage(format!("bad option {key}: {why}"));
    match OWN.iter().find(|(name, _)| *name == key) {
        None => {
            let distance = |(name, _): &&(&str, Takes)| {
                strsim::osa_distance(&lower, &name.to_ascii_lowercase())
            };
            let hint = match OWN.iter().min_by_key(distance) {
                Some(known) if distance(&known) <= 3 => format!("did you mean {}?", known.0),
                _ => {
                    let names: Vec<_> = OWN.iter().map(|(name, _)| *name).collect();
                    format!("spc knows {}", names.join(", "))
                }
            };
            Err(bad("spc does not know it").hint(hint))
        }
        Some((_, Takes::Nothing)) if value.is_some() => {
            Err(bad("it takes no value").hint(format!("write {key}")))
        }
        Some((_, Takes::Value)) if value.is_none_or(str::is_empty) => {
            Err(bad("it needs a value").hint(format!("write {key}=VALUE")))
        }
        Some(_) => Ok(()),
    }
}

/// Returns the options of mount(8) that make a request another one.
pub(super) fn distinguishes(key: &str) -> bool {
    DISTINGUISHING.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn options(list: &str) -> Options {
        Options::parse([list]).unwrap()
    }

    #[test]
    fn later_options_override_earlier_and_implied_ones() {
        for (list, set) in [
            ("user", NOEXEC | NOSUID | NODEV),
            ("user,exec", NOSUID | NODEV),
            ("user,nosuid", NOEXEC | NOSUID | NODEV),
            ("exec,users", NOEXEC | NOSUID | NODEV),
            ("owner,suid", NODEV),
            ("user=alice", 0),
            ("noatime,relatime", 0),
            ("noatime,atime", 0),
            ("noatime,nostrictatime", NOATIME),
            ("strictatime,nostrictatime", 0),
            ("noatime,strictatime", STRICTATIME),
            ("noatime,nosuid", NOATIME | NOSUID),
            ("ro,rw", 0),
            ("ro=vfs", RDONLY),
            ("ro=fs", 0),
            ("nosymfollow,symfollow", 0),
            ("noexec=recursive,nodiratime", NOEXEC | NODIRATIME),
        ] {
            assert_eq!(options(list).attributes().set, set, "{list}");
        }
        let bind = options("noatime,suid").attributes();
        assert_eq!((bind.set, bind.clear), (NOATIME, ATIME | NOSUID));
        assert_eq!(options("atime").attributes().clear, ATIME);
        for (list, clear) in [("nostrictatime", 0), ("nosuid", NOSUID)] {
            assert_eq!(options(list).attributes().clear, clear, "{list}");
        }
    }

    #[test]
    fn unknown_options_of_spc_and_mount_are_refused_with_a_suggestion() {
        for (list, words) in [
            ("x-spc.repiar=containers", "did you mean x-spc.repair?"),
            ("X-spc.mkfs", "did you mean x-spc.mkfs?"),
            ("X-mount.bogus", "X-mount.subdir"),
            ("x-mount.sudbir=a", "did you mean X-mount.subdir?"),
            ("X-mount.nocanonicalize", "spc knows"),
            ("x-spc.container=1", "takes no value"),
            ("x-spc.repair", "needs a value"),
            ("X-mount.subdir=", "needs a value"),
        ] {
            let error = options(list).check_own().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for good in [
            "x-systemd.automount,X-foo,comment=x",
            "x-mount.mkdir,X-mount.mkdir=0700,X-mount.noloop,x-spc.container",
            "x-spc.repair=host",
        ] {
            options(good).check_own().unwrap();
        }
    }
}
