//! Volume as the author of a pod or PersistentVolume describes it, and the checks for that author.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::kinds;
use crate::kinds::block::AUTO;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::Request;
use crate::mount::request::DEFAULT_TIMEOUT;
use crate::options::secrets::is_secret;
use crate::options::{Options, Secrets};
use crate::volume::allowlist::Allowed;
use crate::volume::paths;
use crate::volume::policy;

/// Largest value of `timeout`, in seconds.
const MAX_TIMEOUT: u64 = 3600;

/// Keys that a volume may have.
const KNOWN: [&str; 6] = ["fsType", "source", "servers", "path", "options", "timeout"];

/// Description of a volume, decoded by its frontend.
#[derive(Default)]
pub struct Spec {
    /// Type of the file system; without it, the source determines it.
    pub fs_type: Option<String>,
    /// Keys and values of the volume's author: `source`, or `servers` and `path`; `options`,
    /// `timeout`; `fsType`, for volumes that a controller describes.
    pub attributes: BTreeMap<String, String>,
    /// Mount options that follow those of the attributes.
    pub mount_options: Vec<String>,
    /// Secret of the volume: each value is one line. A key that names no secret becomes an option.
    pub secrets: BTreeMap<String, String>,
    /// Whether the volume is read-only.
    pub read_only: bool,
    /// Group of the pod.
    pub group: Option<String>,
}

/// Author of a volume. The rules for the volume depend on its author.
#[derive(Clone, Copy, Debug)]
pub enum Author<'a> {
    /// Administrator of the cluster, who created a PersistentVolume. Everything is allowed that the
    /// command line allows.
    Administrator,
    /// Author of a pod. Harmless volumes are allowed, and those that the node allows.
    Pod(&'a Allowed),
}

/// Checked volume.
#[derive(Debug)]
pub struct Volume {
    /// Type of the file system.
    pub fs_type: String,
    /// Source, which may name several servers.
    pub source: String,
    /// Mount options, including those of the node and of the pod's group.
    pub options: Options,
    /// Whether the pod has a group, and the files on the volume have no owners of their own.
    has_group_without_owners: bool,
    /// Values of the volume's secret.
    pub secrets: Secrets,
    /// Limit for the whole call.
    pub timeout: Duration,
    /// Whether the helper runs in a sandbox. A volume that an administrator created or allowed may
    /// need files of the node, so its helper does not.
    pub sandboxed: bool,
}

impl Spec {
    /// Returns type and source. Without a type, the source determines it.
    ///
    /// # Errors
    /// The source is missing, given twice, or fits no type; two types are given.
    pub fn type_and_source(&self) -> Result<(String, String)> {
        let attribute = self.attributes.get("fsType").map(String::as_str);
        let types = [self.fs_type.as_deref(), attribute];
        let mut types = types
            .into_iter()
            .flatten()
            .filter(|given| !given.is_empty());
        let given_type = types.next();
        if types.next().is_some_and(|other| Some(other) != given_type) {
            return Err(Error::usage(
                "two different types are given: fsType of the volume, and fsType among its \
                 attributes",
            ));
        }
        let source = self.source(given_type)?;
        let fs_type = match given_type {
            Some(fs_type) => fs_type.to_owned(),
            None => kinds::infer(&source)?.fs_type.to_owned(),
        };
        Ok((fs_type, source))
    }

    /// Returns the source: as given, or composed of servers and a path.
    fn source(&self, fs_type: Option<&str>) -> Result<String> {
        let get = |key: &str| self.attributes.get(key).filter(|value| !value.is_empty());
        match (get("source"), get("servers"), get("path")) {
            (Some(source), None, None) => Ok(source.clone()),
            (None, Some(list), Some(path)) => servers_as_source(fs_type, list, path),
            _ => Err(Error::usage("no source is given")
                .hint("give either `source`, as for `spc mount`, or `servers` and `path`")),
        }
    }

    /// Returns the time limit for mounting the volume.
    ///
    /// # Errors
    /// `timeout` is not a number of seconds from 1 to 3600.
    pub fn timeout(&self) -> Result<Duration> {
        let Some(text) = self.attributes.get("timeout") else {
            return Ok(DEFAULT_TIMEOUT);
        };
        match text.parse() {
            Ok(seconds) if (1..=MAX_TIMEOUT).contains(&seconds) => Ok(Duration::from_secs(seconds)),
            _ => Err(
                Error::usage(format!("bad timeout: {}", text.escape_default()))
                    .hint(format!("use a number of seconds from 1 to {MAX_TIMEOUT}")),
            ),
        }
    }

    /// Checks the keys, and splits options and secrets.
    fn options_and_secrets(&self) -> Result<(Options, Secrets)> {
        let unknown = |key: &&String| !KNOWN.contains(&key.as_str());
        if let Some(key) = self.attributes.keys().find(unknown) {
            return Err(
                Error::usage(format!("unknown option: {}", key.escape_default())).hint(format!(
                    "the options of a volume are {}; those of the file system belong into \
                     `options`, secrets into a secret of the volume",
                    KNOWN.join(", ")
                )),
            );
        }
        let lists = self.attributes.get("options").into_iter();
        let lists = lists.chain(&self.mount_options).map(String::as_str);
        let mut options = Options::parse(lists).map_err(|error| {
            error.hint(
                "put it into a secret that the volume names (secretRef, nodeStageSecretRef, \
                 nodePublishSecretRef): anybody who may read the volume sees its options",
            )
        })?;
        if options.value(SERVERS).is_some() {
            return Err(Error::usage(format!("bad option {SERVERS}"))
                .hint("name the servers of a volume in `servers`"));
        }
        let mut secrets = Secrets::default();
        for (key, value) in &self.secrets {
            if is_secret(key) {
                secrets.add_value(key, value.clone())?;
            } else {
                options.push(format!("{key}={value}"))?;
            }
        }
        Ok((options, secrets))
    }
}

/// Composes a source of servers and a path.
///
/// # Errors
/// There is no type, or sources of the type name no servers in this way.
fn servers_as_source(fs_type: Option<&str>, list: &str, path: &str) -> Result<String> {
    let Some(fs_type) = fs_type else {
        return Err(
            Error::usage("no fsType is given").hint("a volume with `servers` and `path` needs one")
        );
    };
    kinds::with_servers(fs_type, path, &servers::parse_list(list)?)
}

impl Volume {
    /// Checks that the author may have the volume.
    ///
    /// # Errors
    /// A key is missing, unknown or invalid, or the author may not use such a volume.
    pub fn new(spec: &Spec, author: Author<'_>) -> Result<Self> {
        let (mut options, secrets) = spec.options_and_secrets()?;
        let (mut fs_type, mut source) = spec.type_and_source()?;
        if let Author::Administrator = author {
            // Other forms of a type, such as `fuse` with `sshfs#USER@HOST:`, have its rules.
            if fs_type == AUTO {
                fs_type = kinds::infer(&source)?.fs_type.to_owned();
            }
            (fs_type, source) = kinds::canonical(fs_type, source)?;
        }
        let read_only = options.read_only() || spec.read_only;
        let node_options = match author {
            Author::Pod(allowed) => allowed.options(&fs_type, &source),
            Author::Administrator => None,
        };
        let policy = match (author, node_options) {
            (Author::Administrator, _) => policy::unrestricted(&fs_type),
            (Author::Pod(_), Some(_)) => policy::allowed_by_node(&fs_type),
            (Author::Pod(_), None) => policy::for_type(&fs_type)?,
        };
        let restricted = matches!(author, Author::Pod(_));
        let sandboxed = restricted && node_options.is_none();
        if sandboxed {
            policy.check_source(&fs_type, &source)?;
        }
        if restricted {
            policy.check_options(&fs_type, &options)?;
        }
        // Options of the node come last, because the last one of a name takes effect.
        if let Some(node_options) = node_options {
            options.extend(node_options);
        }
        if read_only {
            options.push("ro".into())?;
        }
        let group = spec.group.as_deref();
        policy.complete(&mut options, group)?;
        Ok(Self {
            // kubelet does not change the group of files on a read-only volume.
            has_group_without_owners: group.is_some() && !policy.has_owners() && !read_only,
            fs_type,
            source,
            options,
            secrets,
            timeout: spec.timeout()?,
            sandboxed,
        })
    }

    /// Checks that kubelet will not set the pod's group on files that all have the owner of the
    /// mount.
    ///
    /// # Errors
    /// kubelet would set the group.
    pub fn check_fs_group(&self) -> Result<()> {
        if !self.has_group_without_owners {
            return Ok(());
        }
        Err(Error::usage(format!(
            "fsGroup is not for volumes of type {} with the driver spc/spc",
            self.fs_type
        ))
        .because("kubelet would change every file on the server")
        .hint(
            "use `driver: spc/no-fsgroup`, and a secret of that type: the group becomes an option \
             of the mount",
        ))
    }

    /// Returns the request to mount the volume on `target`.
    ///
    /// # Errors
    /// The target is not an absolute path, or the request is invalid.
    pub fn request(&self, target: &str) -> Result<Request> {
        let path = PathBuf::from(target);
        paths::check(&path)?;
        let request = Request {
            options: self.options.clone(),
            secrets: self.secrets.clone(),
            timeout: Some(self.timeout),
            no_symlink_tail: paths::kubelet_tail(&path),
            sandboxed: self.sandboxed,
            ..Request::new(self.fs_type.as_str(), self.source.as_str(), path)
        }
        .validated()?;
        // The rules for the type were applied above, so the type must not change.
        if self.sandboxed && request.fs_type != self.fs_type {
            let bad = format!(
                "a volume of type {} became {}",
                self.fs_type, request.fs_type
            );
            return Err(Error::usage(bad));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(fs_type: &str, source: &str, options: &str, author: Author<'_>) -> Result<Volume> {
        let attributes = [("source", source), ("options", options)];
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let spec = Spec {
            fs_type: Some(fs_type.to_owned()),
            attributes: attributes.map(own).into(),
            group: Some("7".into()),
            ..Spec::default()
        };
        Volume::new(&spec, author)
    }

    #[test]
    fn only_the_administrator_of_the_cluster_is_not_restricted() {
        for (fs_type, source, options) in [
            ("bind", "/srv", ""),
            ("ceph", "h:/", "secretfile=/etc/secret"),
            ("fuse.other", "x", "program=y"),
        ] {
            let allowed = volume(fs_type, source, options, Author::Administrator).unwrap();
            assert!(!allowed.sandboxed);
            let nothing = Allowed::default();
            volume(fs_type, source, options, Author::Pod(&nothing)).unwrap_err();
        }
        volume("nfs", "h:/x", "password=x", Author::Administrator).unwrap_err();
    }

    #[test]
    fn the_type_may_be_an_attribute() {
        let volume = |fs_type: Option<&str>, attribute: &str, author| {
            let attributes = [("source", "a:/v"), ("fsType", attribute)];
            let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
            let spec = Spec {
                fs_type: fs_type.map(str::to_owned),
                attributes: attributes.map(own).into(),
                ..Spec::default()
            };
            Volume::new(&spec, author).map(|volume| volume.fs_type)
        };
        for given in [None, Some(""), Some("glusterfs")] {
            let found = volume(given, "glusterfs", Author::Administrator);
            assert_eq!(found.unwrap(), "glusterfs");
        }
        assert_eq!(
            volume(Some("nfs"), "", Author::Administrator).unwrap(),
            "nfs"
        );
        volume(Some("nfs"), "glusterfs", Author::Administrator).unwrap_err();
        // A pod has the rules of the type in either place.
        volume(None, "bind", Author::Pod(&Allowed::default())).unwrap_err();
    }

    #[test]
    fn options_of_a_pod_do_not_change_the_type() {
        let nothing = Allowed::default();
        let pod = |fs_type: &str, source: &str, options: &str| {
            volume(fs_type, source, options, Author::Pod(&nothing)).map(drop)
        };
        for (fs_type, source, options) in [
            ("nfs", "h:/srv", "bind"),
            ("nfs4", "h:/srv", "ro,rbind"),
            ("cifs", "//h/srv", "bind"),
            ("ceph", "h:/srv", "rbind"),
            ("glusterfs", "h:/srv", "bind"),
        ] {
            let refused = pod(fs_type, source, options).unwrap_err().to_string();
            assert!(refused.contains("of the type that it names"), "{refused}");
        }
        pod("nfs", "/srv", "ro").unwrap_err();
        pod("nfs", "h:/x", "remount").unwrap_err();
        pod("nfs", "h:/x", "ro").unwrap();
        // Not in a volume of the node either.
        let allowed = Allowed::parse("allow ext4 /dev/disk/by-id/x noatime").unwrap();
        let disk = |options: &str| {
            let author = Author::Pod(&allowed);
            volume("ext4", "/dev/disk/by-id/x", options, author).map(drop)
        };
        disk("").unwrap();
        disk("bind").unwrap_err();
    }

    #[test]
    fn other_forms_of_a_type_have_its_rules() {
        for (fs_type, source, full) in [
            ("fuse", "sshfs#u@h:", "fuse.sshfs"),
            ("sshfs", "u@h:", "fuse.sshfs"),
            ("auto", "u@h:", "fuse.sshfs"),
            ("", "u@h:", "fuse.sshfs"),
        ] {
            let volume = volume(fs_type, source, "", Author::Administrator).unwrap();
            assert_eq!((&*volume.fs_type, &*volume.source), (full, "u@h:"));
            assert_eq!(volume.options.to_string(), "allow_other,gid=7");
        }
        let disk = volume("auto", "rbd:a/b", "", Author::Administrator).unwrap();
        assert_eq!(disk.fs_type, "auto");
    }
}
