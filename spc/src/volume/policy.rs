//! Types, sources and options that a pod may use.
//!
//! A user who may create pods need not be root on the nodes. So no volume of a pod reaches files,
//! programs or devices of a node or of the container, unless the node allows it
//! ([`super::allowlist`]).

use crate::error::{Error, Result};
use crate::kinds::FILE_OPTIONS;
use crate::options::Options;
use crate::volume::allowlist::FILE;

/// Options with which mount(8) does something other than mounting the source.
const OPERATIONS: [&str; 3] = ["bind", "rbind", "remount"];

/// Rules for the volumes of one type.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Options that pods may use.
    options: Allowed,
    /// Options that set the pod's group (fsGroup), for types on which kubelet cannot change the
    /// group of files. `{}` stands for the group.
    group: &'static [(&'static str, &'static str)],
    /// Option without which only root can use the mount.
    for_others: Option<&'static str>,
    /// Option that is required and whose value must not be zero.
    needs: Option<&'static str>,
    /// Option, and its value unless the pod gives one, with which the kernel does not offer the
    /// node's Kerberos ticket to a server that asks for it.
    authentication: Option<(&'static str, &'static str)>,
}

/// Set of options that pods may use.
#[derive(Clone, Copy, Debug)]
enum Allowed {
    /// All except these and [`FILE_OPTIONS`], which name files or devices.
    AllBut(&'static [&'static str]),
    /// Only these and [`COMMON`]; others may name programs to run.
    Only(&'static [&'static str]),
}

/// Policy for types whose options are safe, except those that name files.
const DEFAULT: Policy = Policy {
    options: Allowed::AllBut(&[]),
    group: &[],
    for_others: None,
    needs: None,
    authentication: None,
};

/// Returns the policy for a volume that the node allows. Only the node's file sets its options.
pub fn allowed_by_node(fs_type: &str) -> Policy {
    Policy {
        options: Allowed::Only(&[]),
        group: for_type(fs_type).map_or(DEFAULT.group, |policy| policy.group),
        ..DEFAULT
    }
}

/// Returns the policy for a volume of the cluster's administrator. It only adds options, such as
/// those for the pod's group; nothing is checked.
pub fn unrestricted(fs_type: &str) -> Policy {
    Policy {
        authentication: None,
        ..for_type(fs_type).unwrap_or(DEFAULT)
    }
}

/// Options that have the same meaning for every type.
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

/// Options of sshfs that name neither files nor programs.
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

/// Options of s3fs that name neither files nor programs.
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

/// Returns the policy for a type.
///
/// # Errors
/// Volumes of the type may reach files, programs or devices of the node.
pub fn for_type(fs_type: &str) -> Result<Policy> {
    Ok(match fs_type {
        "glusterfs" => Policy {
            options: Allowed::AllBut(&["log-file", "dump-fuse"]),
            ..DEFAULT
        },
        "nfs" | "nfs4" => Policy {
            authentication: Some(("sec", "sys")),
            ..DEFAULT
        },
        "ceph" | "ceph-fuse" | "fuse.ceph" | "fuse.ceph-fuse" => Policy {
            options: Allowed::AllBut(&["modules"]),
            ..DEFAULT
        },
        "cifs" | "smb3" => Policy {
            group: &[
                ("gid", "{}"),
                ("forcegid", ""),
                ("file_mode", "0664"),
                ("dir_mode", "0775"),
            ],
            authentication: Some(("sec", "ntlmssp")),
            ..DEFAULT
        },
        // A disk that a pod chooses can end the node (`errors=panic` in its superblock), take the
        // identity of another disk, and its monitors have rbd, outside of a sandbox, write files.
        "ext4" | "xfs" | "auto" => {
            return Err(refused(
                fs_type,
                "whoever serves a disk to the node is trusted by its kernel",
                "name it in a PersistentVolume for the CSI driver disk.spc.csi, or in",
            ));
        }
        "fuse.sshfs" => Policy {
            options: Allowed::Only(&SSHFS),
            group: &[("gid", "{}")],
            for_others: Some("allow_other"),
            ..DEFAULT
        },
        "fuse.s3fs" => Policy {
            options: Allowed::Only(&S3FS),
            group: &[("gid", "{}")],
            for_others: Some("allow_other"),
            ..DEFAULT
        },
        "tmpfs" => Policy {
            options: Allowed::Only(&["gid", "mode", "size", "uid"]),
            needs: Some("size"),
            ..DEFAULT
        },
        _ => {
            return Err(refused(
                fs_type,
                "they may reach files or programs of the node",
                "pods may use glusterfs, nfs, ceph, ceph-fuse, cifs, fuse.sshfs, fuse.s3fs and \
                 tmpfs; any other volume needs",
            ));
        }
    })
}

/// Returns the error for a type that pods may not have.
fn refused(fs_type: &str, why: &'static str, hint: &str) -> Error {
    let fs_type = fs_type.escape_default();
    Error::usage(format!("volumes of type {fs_type} are not for pods"))
        .because(why)
        .hint(format!(
            "{hint} a line in {FILE} on the node: allow TYPE SOURCE OPTIONS"
        ))
}

impl Policy {
    /// Returns whether files of this type have owners of their own.
    pub fn has_owners(&self) -> bool {
        self.group.is_empty()
    }

    /// Checks the source of a volume.
    ///
    /// # Errors
    /// The source has a character that a helper could misread.
    pub fn check_source(&self, fs_type: &str, source: &str) -> Result<()> {
        let is_share = matches!(fs_type, "cifs" | "smb3") && source.starts_with("//");
        if source.starts_with('/') && !is_share && fs_type != "tmpfs" {
            return Err(
                Error::usage(format!("bad source: {}", source.escape_default()))
                    .because("it is a directory")
                    .hint("a pod's source names a server"),
            );
        }
        // mount.glusterfs is a shell script.
        let is_script = fs_type == "glusterfs";
        if source.contains(|c: char| c.is_control() || "\"'".contains(c))
            || (is_script && source.contains(is_special_in_shell))
        {
            return Err(
                Error::usage(format!("bad source: {}", source.escape_default())).hint(
                    "a source must not contain quotes or control characters, and for glusterfs \
                         no spaces or shell characters",
                ),
            );
        }
        Ok(())
    }

    /// Checks the options of a volume.
    ///
    /// # Errors
    /// An option is not allowed for pods, its value could be read as several options, or a required
    /// option is missing.
    pub fn check_options(&self, fs_type: &str, options: &Options) -> Result<()> {
        for (key, value) in options.iter() {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let bad = |why: &str| {
                Error::usage(format!(
                    "bad option {} for {fs_type}: {why}",
                    key.escape_default()
                ))
            };
            if !key.chars().all(is_plain) {
                return Err(bad("no valid option name"));
            }
            // A helper may split the value at such a character and find a further option in it.
            let is_separator = |c: char| {
                c.is_control()
                    || c.is_whitespace()
                    || ",\"'".contains(c)
                    || (fs_type == "glusterfs" && is_special_in_shell(c))
            };
            if value.is_some_and(|value| value.contains(is_separator)) {
                return Err(bad("its value has a comma, a space or a quote"));
            }
            if (key, value) == ("xprtsec", Some("mtls")) {
                return Err(bad("not for pods")
                    .because("the node would show its own certificate")
                    .hint("use xprtsec=tls, which shows none"));
            }
            // With these, mount(8) does not mount the type and source that were checked.
            if OPERATIONS.contains(&key) {
                return Err(bad("not for pods")
                    .because("a pod's volume is of the type that it names")
                    .hint("leave it out"));
            }
            let own = key.starts_with("x-") || key.starts_with("X-");
            let allowed = match self.options {
                _ if own => false,
                Allowed::AllBut(not) => !not.contains(&key) && !FILE_OPTIONS.contains(&key),
                Allowed::Only(known) => known.contains(&key) || COMMON.contains(&key),
            };
            if !allowed {
                return Err(bad("not for pods").hint(match self.options {
                    Allowed::Only([]) => {
                        format!("the options of this volume are set in {FILE} on the node")
                    }
                    Allowed::Only(known) => format!("pods may use {}", known.join(", ")),
                    Allowed::AllBut(_) => "it names a file, a device or a program of the node; \
                                           secrets come from a secret of the pod"
                        .into(),
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
                    .because("without it, the volume can use up the memory of the node")
                    .hint(format!("add {needed}=64m to the volume's options")),
            );
        }
        Ok(())
    }

    /// Adds the options that set the pod's group, the one without which only root has access, and
    /// the one that keeps the node's Kerberos ticket from a pod's server.
    ///
    /// # Errors
    /// The group is not a number.
    pub fn complete(&self, options: &mut Options, group: Option<&str>) -> Result<()> {
        if let Some(option) = self.for_others
            && !options.has(option)
        {
            options.push(option.into())?;
        }
        if let Some((option, value)) = self.authentication
            && !options.has_key(option)
        {
            options.push(format!("{option}={value}"))?;
        }
        let Some(group) = group else { return Ok(()) };
        if group.parse::<u32>().is_err() {
            return Err(
                Error::usage(format!("bad group: {}", group.escape_default()))
                    .hint("kubelet gives fsGroup as a number"),
            );
        }
        // An explicit gid takes precedence over the group.
        if options.value("gid").is_some() {
            return Ok(());
        }
        for (key, value) in self.group {
            if options.has_key(key) {
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

/// Returns whether a character has a special meaning in a shell.
fn is_special_in_shell(c: char) -> bool {
    c.is_whitespace() || "`$;|&<>(){}*?!\\".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &str) -> Options {
        Options::parse([list]).unwrap()
    }

    #[test]
    fn volumes_that_reach_the_node_are_refused() {
        for fs_type in [
            "bind",
            "overlay",
            "fuse.bindfs",
            "fuse",
            "fuse.fuse2fs",
            "x",
            "",
            "ext4",
            "xfs",
            "auto",
        ] {
            assert!(for_type(fs_type).is_err(), "{fs_type}");
        }
        for (fs_type, bad) in [
            ("ceph", "name=a,secretfile=/etc/shadow"),
            ("ceph-fuse", "conf=x"),
            ("ceph", "modules=subdir"),
            ("cifs", "credentials=/etc/shadow"),
            ("glusterfs", "log-file=/etc/passwd"),
            ("fuse.sshfs", "ProxyCommand=id"),
            ("fuse.sshfs", "ssh_command=id"),
            ("fuse.sshfs", "IdentityFile=/root/.ssh/id"),
            ("fuse.s3fs", "credlib=/x"),
            ("fuse.s3fs", "passwd_file=/etc/shadow"),
            ("nfs", "x-spc.container"),
            ("nfs", "x-spc.mkfs"),
            ("nfs", "vers=4.2,xprtsec=mtls"),
            // No limit for the memory.
            ("tmpfs", "mode=0700"),
            ("tmpfs", "size=0"),
            ("tmpfs", "size=1m,nr_inodes=0"),
            ("tmpfs", "size=1m,size=0x0"),
            // A single option for spc, several for programs that split at the comma or space.
            ("cifs", "username=\"a,credentials=/etc/shadow\""),
            ("nfs", "port=1 2"),
            ("nfs", "a b"),
        ] {
            let checked = for_type(fs_type)
                .unwrap()
                .check_options(fs_type, &options(bad));
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
            ("fuse.sshfs", "reconnect,port=2222,ro"),
            (
                "fuse.s3fs",
                "url=http://192.0.2.1:9000,use_path_request_style",
            ),
            ("tmpfs", "size=64m,mode=1777,noexec"),
        ] {
            let checked = for_type(fs_type)
                .unwrap()
                .check_options(fs_type, &options(good));
            assert!(checked.is_ok(), "{checked:?}");
        }
        for (fs_type, source, good) in [
            ("glusterfs", "h:/v --log-file=/x", false),
            ("glusterfs", "h:/$(id)", false),
            ("cifs", "//h/My Share", true),
            ("cifs", "//h/a'b", false),
            ("nfs", "h:/a\nb", false),
            ("nfs", "[2001:db8::1]:/x", true),
            ("fuse.sshfs", "/x@192.0.2.1:/", false),
            ("fuse.sshfs", "//x@192.0.2.1:/", false),
        ] {
            let checked = for_type(fs_type).unwrap().check_source(fs_type, source);
            assert_eq!(checked.is_ok(), good, "{source}");
        }
    }

    #[test]
    fn a_volume_of_the_node_takes_few_options_and_the_group_of_its_type() {
        let policy = allowed_by_node("fuse.sshfs");
        let check = |list| policy.check_options("fuse.sshfs", &options(list)).is_ok();
        assert!(check("ro,noatime") && !check("uid=5") && !check("IdentityFile=/k"));
        let mut given = options("");
        policy.complete(&mut given, Some("7")).unwrap();
        assert_eq!(given.to_string(), "gid=7");
        assert!(!policy.has_owners() && allowed_by_node("bind").has_owners());
    }

    #[test]
    fn every_kind_is_allowed_for_pods_except_those_of_the_node() {
        let mut refused = Vec::new();
        for name in crate::kinds::names() {
            if for_type(name).is_err() {
                refused.push(name);
            }
        }
        assert_eq!(refused, ["fuse.*", "overlay", "ext4", "xfs", "bind"]);
    }

    #[test]
    fn group_of_a_pod_becomes_options_where_files_have_no_group() {
        for (fs_type, given, complete) in [
            ("nfs", "ro", "ro,sec=sys"),
            ("nfs4", "sec=none", "sec=none"),
            (
                "cifs",
                "",
                "sec=ntlmssp,gid=7,forcegid,file_mode=0664,dir_mode=0775",
            ),
            (
                "cifs",
                "sec=ntlmv2,file_mode=0600",
                "sec=ntlmv2,file_mode=0600,gid=7,forcegid,dir_mode=0775",
            ),
            ("cifs", "gid=5", "gid=5,sec=ntlmssp"),
            ("fuse.sshfs", "", "allow_other,gid=7"),
            ("fuse.s3fs", "umask=0007", "umask=0007,allow_other,gid=7"),
        ] {
            let mut options = options(given);
            let policy = for_type(fs_type).unwrap();
            policy.complete(&mut options, Some("7")).unwrap();
            assert_eq!(options.to_string(), complete, "{fs_type}");
            assert!(policy.complete(&mut options, Some("7,x")).is_err());
        }
        // The administrator may use the node's ticket.
        let mut options = options("ro");
        unrestricted("nfs").complete(&mut options, None).unwrap();
        assert_eq!(options.to_string(), "ro");
    }
}
