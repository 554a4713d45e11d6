//! Resolves a request against the table of kinds.

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::kinds::block;
use crate::kinds::model::{
    Diagnostics, KindInput, MountMethod, SecretDelivery, SecretParam, ShownSource, Source,
};
use crate::kinds::table::row;

/// Row of the table applied to one request.
#[derive(Clone, Debug)]
pub struct ResolvedKind {
    /// Maker of the mount: a helper, the kernel, or the kernel as a bind.
    pub method: MountMethod,
    /// File system types that prove the mount: the mount table must show one of them. A `*` at the
    /// end stands for any text. An empty list allows any type.
    pub expected_types: Vec<String>,
    /// Requirement on the source.
    pub source: Source,
    /// Rules to read the helper's output and to find a hint in it.
    pub diagnostics: Diagnostics,
    /// Device to attach before the mount.
    pub device: Option<block::Device>,
    /// Kernel modules that the mount needs, also those of the device.
    pub modules: Vec<Module>,
    /// Source that the mount table will show; none if it is not known beforehand.
    pub expected_source: Option<String>,
    /// Reason why another type replaces the requested one, for `spc explain`: the kernel lacks a
    /// module.
    pub fallback_reason: Option<String>,
}

impl ResolvedKind {
    /// Returns whether all expected types are FUSE types.
    pub fn is_fuse(&self) -> bool {
        !self.expected_types.is_empty()
            && self
                .expected_types
                .iter()
                .all(|shown| shown == "fuseblk" || shown == "fuse" || shown.starts_with("fuse."))
    }

    /// Returns whether the kernel makes one mount of the type at a time while a server does not
    /// answer: NFS version 4 and SMB.
    pub fn locks_out_others(&self) -> bool {
        let locks = |shown: &String| matches!(&**shown, "nfs" | "nfs4" | "cifs" | "smb3");
        self.expected_types.iter().any(locks)
    }
}

/// Returns whether a type of the mount table is among the expected ones. An empty list allows any
/// type.
pub fn is_expected_type(expected: &[String], fs_type: &str) -> bool {
    let fits = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => fs_type.starts_with(prefix),
        None => pattern == fs_type,
    };
    expected.is_empty() || expected.iter().any(fits)
}

/// Applies the row of the request's type. Where the kernel lacks a module of that row, the row's
/// fallback is applied instead.
///
/// # Errors
/// Fails if the kind's rules refuse the source, an option or a secret.
pub fn resolve(input: &KindInput<'_>) -> Result<ResolvedKind> {
    let mut kind = row(input.fs_type)?;
    let mut fallback_reason = None;
    if let Some(fallback) = kind.fallback {
        fallback_reason = kind
            .modules
            .iter()
            .find_map(|module| (input.kernel_lacks)(*module));
        if fallback_reason.is_some() {
            kind = row(fallback)?;
        }
    }
    let device = match kind.source {
        Source::BlockDevice => block::device(input)?,
        Source::Any => None,
    };
    let method = (kind.method)(input)?;
    check_secrets(input, &method, device.as_ref())?;
    let mut modules = kind.modules.to_vec();
    modules.extend(device.iter().flat_map(|device| device.modules));
    Ok(ResolvedKind {
        device,
        method,
        expected_types: kind
            .expected_types
            .iter()
            .map(|t| t.replace("{}", input.fs_type))
            .collect(),
        source: kind.source,
        diagnostics: kind.diagnostics,
        modules,
        expected_source: match kind.shows_source {
            ShownSource::Requested => Some(input.source.to_owned()),
            ShownSource::Always(source) => Some(source.to_owned()),
            ShownSource::Unknown => None,
        },
        fallback_reason,
    })
}

/// Checks that the helper or the device takes each secret, and that no value is given twice.
fn check_secrets(
    input: &KindInput<'_>,
    method: &MountMethod,
    device: Option<&block::Device>,
) -> Result<()> {
    let params = method.secret_params();
    let mut keys: Vec<_> = params.iter().map(|param| param.key).collect();
    keys.extend(device.iter().flat_map(|device| device.secrets));
    if let Some(key) = input.secrets.keys().find(|key| !keys.contains(key)) {
        let (has, hint) = if keys.is_empty() {
            let hint =
                "leave it out, or use an option of the type that names a file with the secret";
            ("takes no secrets", hint.to_owned())
        } else {
            let hint = format!("secrets of this type: {}", keys.join(", "));
            ("has no secret of this name", hint)
        };
        let what = format!("bad option {key}: type {} {has}", input.fs_type);
        return Err(Error::usage(what).hint(hint));
    }
    let given: Vec<&SecretParam> = params
        .iter()
        .filter(|param| input.secrets.has(param.key))
        .collect();
    for (index, param) in given.iter().enumerate() {
        let other = match param.delivery {
            SecretDelivery::File { option } if input.options.value(option).is_some() => {
                Some(option)
            }
            delivery => given[..index]
                .iter()
                .find(|earlier| earlier.delivery == delivery)
                .map(|earlier| earlier.key),
        };
        if let Some(other) = other {
            return Err(Error::usage(format!(
                "bad option {}: {other} is given as well",
                param.key
            ))
            .hint("give only one of them"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::model::{Helper, TARGET};
    use crate::options::Options;

    fn kind(fs_type: &str, source: &str, options: &str) -> Result<ResolvedKind> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        resolve(&KindInput {
            fs_type,
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        })
    }

    fn helper(kind: &ResolvedKind) -> &Helper {
        match &kind.method {
            MountMethod::Helper(helper) => helper,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fuse_program_without_a_row_is_run_by_its_name() {
        let kind = kind("fuse.bindfs", "/d", "rw,allow_other").unwrap();
        let helper = helper(&kind);
        assert_eq!(helper.programs, ["bindfs"]);
        assert_eq!(helper.args, ["/d", TARGET]);
        assert_eq!(helper.options.to_string(), "allow_other");
        assert!(kind.is_fuse());
        for (shown, expected) in [
            ("fuse.bindfs", true),
            ("fuse.other", true),
            ("fuse", true),
            ("fusectl", false),
            ("nfs", false),
        ] {
            assert_eq!(
                is_expected_type(&kind.expected_types, shown),
                expected,
                "{shown}"
            );
        }
    }

    #[test]
    fn each_type_has_its_maker_and_the_types_that_prove_its_mount() {
        let fuse = "fuse fuse.* fuseblk";
        for (fs_type, source, maker, types) in [
            ("glusterfs", "a:/v", "mount.glusterfs log", "fuse.glusterfs"),
            ("nfs", "a:/x", "mount.nfs services", "nfs nfs4"),
            ("nfs4", "a:/x", "mount.nfs4 services", "nfs4"),
            ("ceph", "a:/", "mount.ceph secret", "ceph"),
            ("ceph-fuse", "a:/", "ceph-fuse secret", "fuse.ceph-fuse"),
            ("fuse.ceph", "a:/", "ceph-fuse secret", "fuse.ceph-fuse"),
            (
                "fuse.ceph-fuse",
                "a:/",
                "ceph-fuse secret",
                "fuse.ceph-fuse",
            ),
            ("cifs", "//a/b", "mount.cifs password pass", "cifs"),
            ("smb3", "//a/b", "mount.smb3 password pass", "smb3"),
            ("fuse.sshfs", "me@a:", "sshfs password", fuse),
            ("fuse.s3fs", "b", "s3fs log passwd", fuse),
            ("tmpfs", "t", "kernel", "tmpfs"),
            ("overlay", "o", "kernel", "overlay"),
            ("ext4", "/dev/sdb", "kernel", "ext4"),
            ("xfs", "/dev/sdb", "kernel", "xfs"),
            ("auto", "rbd:a/b", "kernel", "ext4 xfs ext3 ext2"),
            ("bind", "/a", "bind", ""),
            ("nosuch", "a", "mount.nosuch", "nosuch fuse.nosuch fuse"),
        ] {
            let kind = kind(fs_type, source, "").unwrap();
            let found = match &kind.method {
                MountMethod::Helper(helper) => {
                    assert!(helper.args.contains(&TARGET.to_owned()), "{fs_type}");
                    let mut words = vec![&*helper.programs[0]];
                    words.extend(helper.log.as_ref().map(|_| "log"));
                    words.extend(helper.starts_services.then_some("services"));
                    words.extend(helper.secrets.iter().map(|secret| secret.key));
                    &*words.join(" ")
                }
                MountMethod::Kernel => "kernel",
                MountMethod::Bind { .. } => "bind",
            };
            assert_eq!(found, maker, "{fs_type}");
            assert_eq!(kind.expected_types.join(" "), types, "{fs_type}");
            let is_disk = ["ext4", "xfs", "auto"].contains(&fs_type);
            assert_eq!(kind.source == Source::BlockDevice, is_disk, "{fs_type}");
            let shown = match fs_type {
                "ceph" => None,
                _ if types == "fuse.ceph-fuse" => Some("ceph-fuse"),
                _ => Some(source),
            };
            assert_eq!(kind.expected_source.as_deref(), shown, "{fs_type}");
            let modules = kind.modules.iter().map(|module| module.name);
            let rbd = source.starts_with("rbd:");
            assert_eq!(modules.filter(|name| *name == "rbd").count() > 0, rbd);
        }
        for options in ["", "rbind"] {
            let recursive = !options.is_empty();
            let bind = kind("bind", "/a", options).unwrap();
            assert_eq!(bind.method, MountMethod::Bind { recursive });
        }
    }

    #[test]
    fn each_kind_explains_the_errors_of_its_helper() {
        let nfs = ("access denied by server", "trying 192.0.2.1", "exportfs");
        let smb = ("error(13)", "Refer to the mount.cifs(8)", "the password");
        let ceph = ("mount error 13", "starting fuse", "ceph auth get");
        for (fs_type, source, (error, noise, hint)) in [
            (
                "glusterfs",
                "a:/v",
                ("failed to fetch volume file", "Final graph:", "volume info"),
            ),
            ("nfs", "a:/x", nfs),
            ("nfs4", "a:/x", nfs),
            ("ceph", "a:/", ceph),
            ("fuse.ceph-fuse", "a:/", ceph),
            ("cifs", "//a/b", smb),
            ("smb3", "//a/b", smb),
            (
                "fuse.sshfs",
                "me@a:",
                ("Permission denied", "", "IdentityFile"),
            ),
            (
                "fuse.s3fs",
                "b",
                ("Invalid Credentials", "2026Z [INF] x", "ID:SECRET"),
            ),
        ] {
            let diagnostics = kind(fs_type, source, "").unwrap().diagnostics;
            let hints = diagnostics.hints.iter();
            let found = hints.clone().find(|(text, _)| error.contains(text));
            let found = found.map_or("", |(_, hint)| hint);
            assert!(found.contains(hint), "{fs_type}: {found}");
            assert_eq!((diagnostics.line)(error), Some(error), "{fs_type}");
            if !noise.is_empty() {
                assert_eq!((diagnostics.line)(noise), None, "{fs_type}");
            }
        }
    }

    #[test]
    fn an_unknown_type_is_mounted_by_its_mount_helper() {
        let kind = kind("nosuch", "h:/x", "").unwrap();
        assert_eq!(helper(&kind).programs, ["mount.nosuch"]);
        assert!(kind.expected_types.contains(&"fuse.nosuch".to_owned()) && !kind.is_fuse());
    }

    #[test]
    fn a_secret_that_nothing_takes_or_that_is_given_twice_is_refused() {
        let password = kind("cifs", "//h/s", "password=hunter2").unwrap();
        let helper = helper(&password);
        assert_eq!(helper.options.to_string(), "");
        assert_eq!(helper.secrets[0].key, "password");
        assert!(kind("ceph", "x:/y", "secret=hunter2").is_ok());
        for (fs_type, options, message) in [
            ("tmpfs", "password=hunter2", "type tmpfs takes no secrets"),
            (
                "fuse.bindfs",
                "key=hunter2",
                "type fuse.bindfs takes no secrets",
            ),
            ("ceph", "password=hunter2", "secrets of this type: secret"),
            (
                "ceph",
                "secret=hunter2,secretfile=/f",
                "secretfile is given as well",
            ),
            ("cifs", "pass=hunter2,password=hunter2", "given as well"),
        ] {
            let source = if fs_type == "cifs" { "//x/y" } else { "x:/y" };
            let error = kind(fs_type, source, options).unwrap_err().to_string();
            assert!(
                error.contains(message) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
