//! What a pod may ask for. Whoever may make pods is not therefore root on the nodes: nothing here reaches files, programs
//! or devices of a node or of the container, unless the node says so ([`crate::frontends::kubelet::flexvolume::allowlist`]).

use crate::block::filesystem::MKFS;
use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::allowlist::FILE;
use crate::kinds::FILES;
use crate::options::Options;

/// What a type lets a pod ask for.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Its options.
    options: Allowed,
    /// What its sources begin with; anything if nothing is said.
    sources: &'static [&'static str],
    /// Options that a pod's group makes, where files cannot be given to it one by one; `{}` stands for the group.
    group: &'static [(&'static str, &'static str)],
    /// Its mounts are for root alone unless this is asked for.
    for_others: Option<&'static str>,
    /// An option that there has to be, with a value that is not zero.
    needs: Option<&'static str>,
}

/// Options of a type.
#[derive(Clone, Copy, Debug)]
enum Allowed {
    /// All but these and [`FILES`], which name files or devices.
    AllBut(&'static [&'static str]),
    /// These and no other: the rest may name programs to run.
    Only(&'static [&'static str]),
}

const KERNEL: Policy = Policy {
    options: Allowed::AllBut(&[]),
    sources: &[],
    group: &[],
    for_others: None,
    needs: None,
};

/// For a volume that the node allows by itself: everything that counts is said there.
pub const OF_NODE: Policy = Policy {
    options: Allowed::Only(&[]),
    ..KERNEL
};

/// Options that mean the same to every type.
const COMMON: [&str; 16] = [
    "ro",
    "rw",
    "defaults",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "nosuid",
    "nodev",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "_netdev",
    "nofail",
    "default_permissions",
];

const SSHFS: [&str; 24] = [
    "Ciphers",
    "Compression",
    "ConnectTimeout",
    "MACs",
    "Port",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "StrictHostKeyChecking",
    "allow_other",
    "auto_cache",
    "cache",
    "cache_timeout",
    "compression",
    "dir_cache",
    "follow_symlinks",
    "gid",
    "idmap",
    "kernel_cache",
    "max_conns",
    "port",
    "reconnect",
    "transform_symlinks",
    "uid",
    "umask",
];

const S3FS: [&str; 26] = [
    "allow_other",
    "compat_dir",
    "complement_stat",
    "connect_timeout",
    "default_acl",
    "enable_noobj_cache",
    "endpoint",
    "gid",
    "listobjectsv2",
    "mp_umask",
    "multipart_size",
    "nocopyapi",
    "nomultipart",
    "norenameapi",
    "notsup_compat_dir",
    "parallel_count",
    "public_bucket",
    "readwrite_timeout",
    "requester_pays",
    "retries",
    "stat_cache_expire",
    "storage_class",
    "uid",
    "umask",
    "url",
    "use_path_request_style",
];

/// What a type lets a pod ask for.
///
/// # Errors
/// It may reach what is the node's.
pub fn of(fs_type: &str) -> Result<Policy> {
    Ok(match fs_type {
        "glusterfs" => Policy {
            options: Allowed::AllBut(&["log-file", "dump-fuse"]),
            ..KERNEL
        },
        "nfs" | "nfs4" => KERNEL,
        "ceph" | "ceph-fuse" | "fuse.ceph" | "fuse.ceph-fuse" => Policy {
            options: Allowed::AllBut(&["modules"]),
            ..KERNEL
        },
        "cifs" | "smb3" => Policy {
            group: &[
                ("gid", "{}"),
                ("forcegid", ""),
                ("file_mode", "0664"),
                ("dir_mode", "0775"),
            ],
            ..KERNEL
        },
        "ext4" | "xfs" | "auto" => Policy {
            options: Allowed::AllBut(&[
                "cluster",
                "journal_dev",
                "journal_path",
                "logdev",
                "rtdev",
            ]),
            sources: &["iscsi:", "rbd:"],
            ..KERNEL
        },
        "fuse.sshfs" => Policy {
            options: Allowed::Only(&SSHFS),
            group: &[("gid", "{}")],
            for_others: Some("allow_other"),
            ..KERNEL
        },
        "fuse.s3fs" => Policy {
            options: Allowed::Only(&S3FS),
            group: &[("gid", "{}")],
            for_others: Some("allow_other"),
            ..KERNEL
        },
        "tmpfs" => Policy {
            options: Allowed::Only(&["gid", "mode", "size", "uid"]),
            needs: Some("size"),
            ..KERNEL
        },
        _ => {
            return Err(Error::usage(format!(
                "volumes of type {} are not for pods",
                fs_type.escape_default()
            ))
            .because("they may reach files or programs of the node")
            .hint(format!("pods may have glusterfs, nfs, ceph, ceph-fuse, cifs, ext4 and xfs from iscsi: or rbd:, fuse.sshfs, fuse.s3fs and tmpfs; any other volume needs a line in {FILE} of the node: allow TYPE SOURCE OPTIONS")));
        }
    })
}

impl Policy {
    /// Checks a source.
    ///
    /// # Errors
    /// It names something of the node.
    pub fn check_source(&self, fs_type: &str, source: &str) -> Result<()> {
        if !self.sources.is_empty() && !self.sources.iter().any(|begin| source.starts_with(begin)) {
            return Err(Error::usage(format!(
                "bad source for {fs_type}: {}",
                source.escape_default()
            ))
            .because("it is a device of the node")
            .hint(format!(
                "for pods, sources of this type begin with {}; any other needs a line in {FILE} of the node: allow TYPE SOURCE OPTIONS",
                self.sources.join(" or ")
            )));
        }
        // A helper that is a script splits at them.
        let script = fs_type == "glusterfs";
        if source.contains(|c: char| c.is_control() || "\"'".contains(c))
            || (script && source.contains(is_for_shell))
        {
            return Err(
                Error::usage(format!("bad source: {}", source.escape_default()))
                    .hint("quotes, spaces and the like cannot be in it"),
            );
        }
        Ok(())
    }

    /// Checks options.
    ///
    /// # Errors
    /// One is not for pods.
    pub fn check_options(&self, fs_type: &str, options: &Options) -> Result<()> {
        for (key, value) in options.iter() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let bad = |why: &str| {
                Error::usage(format!(
                    "bad option {} for {fs_type}: {why}",
                    key.escape_default()
                ))
            };
            if !key.chars().all(plain) {
                return Err(bad("no such option can be"));
            }
            // What splits an option for anybody who reads it would smuggle another one in.
            let split = |c: char| {
                c.is_control()
                    || c.is_whitespace()
                    || ",\"'".contains(c)
                    || (fs_type == "glusterfs" && is_for_shell(c))
            };
            if value.is_some_and(|value| value.contains(split)) {
                return Err(bad("its value has a comma, a space or a quote"));
            }
            let own = key.starts_with("x-") || key.starts_with("X-");
            let allowed = match self.options {
                _ if own => key == MKFS,
                Allowed::AllBut(not) => !not.contains(&key) && !FILES.contains(&key),
                Allowed::Only(known) => known.contains(&key) || COMMON.contains(&key),
            };
            if !allowed {
                return Err(bad("not for pods").hint(match self.options {
                    Allowed::Only([]) => format!("options of this volume are said in {FILE} of the node"),
                    Allowed::Only(known) => format!("pods may use {}", known.join(", ")),
                    Allowed::AllBut(_) => "it names a file, a device or a program of the node; secrets come from a secret of the pod".into(),
                }));
            }
        }
        if let Some(needed) = self.needs
            && !options
                .value(needed)
                .is_some_and(|value| value.starts_with(|c: char| ('1'..='9').contains(&c)))
        {
            return Err(
                Error::usage(format!("bad options for {fs_type}: no {needed}"))
                    .because("without one it takes what memory there is")
                    .hint(format!("add {needed}=64m to the volume's options")),
            );
        }
        Ok(())
    }

    /// Adds what follows from a pod's group, and what any pod needs.
    ///
    /// # Errors
    /// The group is no number.
    pub fn complete(&self, options: &mut Options, group: Option<&str>) -> Result<()> {
        if let Some(option) = self.for_others
            && !options.has(option)
        {
            options.push(option.into())?;
        }
        let Some(group) = group else { return Ok(()) };
        if group.parse::<u32>().is_err() {
            return Err(
                Error::usage(format!("bad group: {}", group.escape_default()))
                    .hint("kubelet gives fsGroup as a number"),
            );
        }
        // What the pod says itself counts.
        if options.value("gid").is_some() {
            return Ok(());
        }
        for (key, value) in self.group {
            if options.iter().any(|(there, _)| there == *key) {
                continue;
            }
            options.push(match *value {
                "" => (*key).to_owned(),
                value => format!("{key}={}", value.replace("{}", group)),
            })?;
        }
        Ok(())
    }
}

/// Whether a shell might not take it for a plain character.
fn is_for_shell(c: char) -> bool {
    c.is_whitespace() || "`$;|&<>(){}*?!\\".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &str) -> Options {
        Options::parse([list]).unwrap()
    }

    #[test]
    fn nothing_reaches_the_node() {
        for fs_type in [
            "bind",
            "overlay",
            "fuse.bindfs",
            "fuse",
            "fuse.fuse2fs",
            "x",
            "",
        ] {
            assert!(of(fs_type).is_err(), "{fs_type}");
        }
        for (fs_type, bad) in [
            ("ceph", "name=a,secretfile=/etc/shadow"),
            ("ceph-fuse", "conf=x"),
            ("cifs", "credentials=/etc/shadow"),
            ("glusterfs", "log-file=/etc/passwd"),
            ("xfs", "logdev=/dev/sda"),
            ("ext4", "journal_path=/dev/sda"),
            ("fuse.sshfs", "ProxyCommand=id"),
            ("fuse.sshfs", "ssh_command=id"),
            ("fuse.sshfs", "IdentityFile=/root/.ssh/id"),
            ("fuse.s3fs", "credlib=/x"),
            ("fuse.s3fs", "passwd_file=/etc/shadow"),
            ("nfs", "x-spc.container"),
            // Without a limit.
            ("tmpfs", "mode=0700"),
            ("tmpfs", "size=0"),
            ("tmpfs", "size=1m,nr_inodes=0"),
            ("tmpfs", "size=1m,size=0x0"),
            // One option for us, two for others.
            ("cifs", "username=\"a,credentials=/etc/shadow\""),
            ("nfs", "port=1 2"),
            ("nfs", "a b"),
        ] {
            let checked = of(fs_type).unwrap().check_options(fs_type, &options(bad));
            assert!(checked.is_err(), "{fs_type} {bad}");
        }
        for (fs_type, good) in [
            ("nfs", "vers=4.1,hard,timeo=50,nconnect=4,ro"),
            ("ceph", "name=app,mds_namespace=fs,ms_mode=secure"),
            ("cifs", r"username=DOMAIN\me,vers=3.1.1,uid=5,seal"),
            (
                "glusterfs",
                "backup-volfile-servers=b:c,log-level=ERROR,acl",
            ),
            ("ext4", "id=app,mon=a/b,x-spc.mkfs,noatime"),
            ("fuse.sshfs", "reconnect,port=2222,ro"),
            (
                "fuse.s3fs",
                "url=http://192.0.2.1:9000,use_path_request_style",
            ),
            ("tmpfs", "size=64m,mode=1777,noexec"),
        ] {
            let checked = of(fs_type).unwrap().check_options(fs_type, &options(good));
            assert!(checked.is_ok(), "{checked:?}");
        }
        for (fs_type, source, good) in [
            ("ext4", "/dev/sda1", false),
            ("auto", "rbd:a/b", true),
            ("ext4", "iscsi:192.0.2.1/iqn.x:y/0", true),
            ("glusterfs", "h:/v --log-file=/x", false),
            ("glusterfs", "h:/$(id)", false),
            ("cifs", "//h/My Share", true),
            ("nfs", "[2001:db8::1]:/x", true),
        ] {
            let checked = of(fs_type).unwrap().check_source(fs_type, source);
            assert_eq!(checked.is_ok(), good, "{source}");
        }
    }

    #[test]
    fn each_kind_is_for_pods_or_needs_the_nodes_word() {
        let mut need = Vec::new();
        for name in crate::kinds::names() {
            if of(name).is_err() {
                need.push(name);
            }
        }
        assert_eq!(need, ["fuse.*", "overlay", "bind"]);
    }

    #[test]
    fn a_group_makes_options_where_files_cannot_be_given_to_it() {
        for (fs_type, given, complete) in [
            ("nfs", "ro", "ro"),
            ("cifs", "", "gid=7,forcegid,file_mode=0664,dir_mode=0775"),
            (
                "cifs",
                "file_mode=0600",
                "file_mode=0600,gid=7,forcegid,dir_mode=0775",
            ),
            ("cifs", "gid=5", "gid=5"),
            ("fuse.sshfs", "", "allow_other,gid=7"),
        ] {
            let mut options = options(given);
            let policy = of(fs_type).unwrap();
            policy.complete(&mut options, Some("7")).unwrap();
            assert_eq!(options.to_string(), complete, "{fs_type}");
            assert!(policy.complete(&mut options, Some("7,x")).is_err());
        }
    }
}
