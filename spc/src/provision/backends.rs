//! Backends: the shares on which volumes are made, from a file of the administrator.
//!
//! The file is a JSON list. A StorageClass names a backend and cannot point the controller at any
//! other server.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, show};
use crate::kinds;
use crate::provision::{Directory, VolumeId};
use crate::volume::{Author, Spec, Volume};

/// Largest size of the file, and of a secret, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// Longest name of a backend.
const MAX_NAME: usize = 40;

/// Types of which a volume can be a directory, with owners of files.
const TYPES: [&str; 8] = [
    "glusterfs",
    "fuse.glusterfs",
    "nfs",
    "nfs4",
    "ceph",
    "ceph-fuse",
    "fuse.ceph",
    "fuse.ceph-fuse",
];

/// Options of the controller's own mount. Files of pods are only removed there. No repair: the next
/// call mounts again.
const OWN_OPTIONS: &str = "nosuid,nodev,noexec,x-spc.repair=no,x-mount.mkdir=0700";

/// Means by which the size of a volume is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quota {
    /// Attribute of the directory on CephFS.
    Ceph,
}

/// Share on which volumes are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Name in StorageClasses and volume ids.
    pub name: String,
    /// Type of the file system.
    #[serde(rename = "type")]
    pub fs_type: String,
    /// Source, below which the volumes are.
    pub source: String,
    /// Mount options.
    #[serde(default)]
    pub options: String,
    /// Mount options of the nodes, if they differ.
    #[serde(default)]
    pub node_options: Option<String>,
    /// Names of the mount's secrets, and the files that hold them.
    #[serde(default)]
    pub secrets: BTreeMap<String, PathBuf>,
    /// Limit for the size of volumes.
    #[serde(default)]
    pub quota: Option<Quota>,
}

/// Reads the file.
///
/// # Errors
/// The file cannot be read, or a backend is invalid.
pub fn read(path: &Path) -> Result<Vec<Backend>> {
    let fail = || Error::system(format!("cannot read the backends {}", show(path)));
    let text = read_bounded(path).map_err(|e| fail().because(e))?;
    parse(&text).map_err(|error| {
        fail().because(error.summary()).hint(
            error
                .hint_text()
                .unwrap_or("docs/kubernetes/provisioning.md describes the file"),
        )
    })
}

/// Parses the text of the file.
///
/// # Errors
/// The text is no list of backends, or one of them is invalid.
pub fn parse(text: &str) -> Result<Vec<Backend>> {
    let backends: Vec<Backend> =
        serde_json::from_str(text).map_err(|e| Error::usage("bad JSON").because(e.to_string()))?;
    for (at, backend) in backends.iter().enumerate() {
        let of = |error: Error| {
            let name = backend.name.escape_default();
            let failed = Error::usage(format!("backend {name}")).because(error.summary());
            match error.hint_text() {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        };
        backend.check().map_err(of)?;
        if backends[..at]
            .iter()
            .any(|other| other.name == backend.name)
        {
            return Err(of(Error::usage("two backends have this name")));
        }
    }
    Ok(backends)
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)? as u64 == MAX_SIZE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

impl Backend {
    fn check(&self) -> Result<()> {
        let (fs_type, source) = kinds::canonical(self.fs_type.clone(), self.source.clone())?;
        let one_component = Directory::new(&self.name).is_ok_and(|name| name.parent().is_none());
        if !one_component || self.name.len() > MAX_NAME {
            return Err(Error::usage(format!(
                "bad name: letters, digits, `.`, `_` and `-`, at most {MAX_NAME} of them"
            )));
        }
        if !TYPES.contains(&fs_type.as_str()) {
            return Err(
                Error::usage(format!("bad type: {}", fs_type.escape_default()))
                    .hint("volumes are made on glusterfs, nfs and ceph"),
            );
        }
        // The second form is USER@FSID.NAME=/DIRECTORY of CephFS.
        if !source.contains(':') && !source.contains("=/") {
            return Err(Error::usage("bad source: it names no server"));
        }
        if self.quota == Some(Quota::Ceph) && !fs_type.contains("ceph") {
            return Err(Error::usage(
                "bad quota: ceph is for the types ceph and ceph-fuse",
            ));
        }
        let target = "/run";
        self.volume(BTreeMap::new())?.request(target)?;
        // Nodes get the description of a volume as it is.
        let directory = Directory::new("x")?;
        let on_node = Spec {
            attributes: self.context(&VolumeId::new(&self.name, directory)?),
            ..Spec::default()
        };
        let on_node = Volume::new(&on_node, Author::Administrator)?;
        on_node.request(target).map(drop)
    }

    /// Reads the secrets of the mount.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read_secrets(&self) -> Result<BTreeMap<String, String>> {
        let read = |(key, path): (&String, &PathBuf)| {
            let text = read_bounded(path).map_err(|e| {
                Error::system(format!(
                    "cannot read the secret {key} of the backend {} in {}",
                    self.name,
                    show(path)
                ))
                .because(e)
            })?;
            let line = text.strip_suffix('\n').unwrap_or(&text).to_owned();
            Ok((key.clone(), line))
        };
        self.secrets.iter().map(read).collect()
    }

    /// Returns the root of the backend as a volume that the controller mounts.
    ///
    /// # Errors
    /// An option or a secret is invalid.
    pub fn volume(&self, secrets: BTreeMap<String, String>) -> Result<Volume> {
        let attributes = [("source", &self.source), ("options", &self.options)];
        let own = |(key, value): (&str, &String)| (key.to_owned(), value.clone());
        let spec = Spec {
            fs_type: Some(self.fs_type.clone()),
            attributes: attributes.map(own).into(),
            mount_options: vec![OWN_OPTIONS.into()],
            secrets,
            ..Spec::default()
        };
        Volume::new(&spec, Author::Administrator)
    }

    /// Returns the attributes by which a node mounts a volume.
    pub fn context(&self, id: &VolumeId) -> BTreeMap<String, String> {
        let root = self.source.trim_end_matches('/');
        let source = format!("{root}/{}", id.directory.path());
        let options = self.node_options.as_ref().unwrap_or(&self.options);
        let mut context = BTreeMap::from([
            ("fsType".to_owned(), self.fs_type.clone()),
            ("source".to_owned(), source),
        ]);
        if !options.is_empty() {
            context.insert("options".to_owned(), options.clone());
        }
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_gets_sources_of_its_form() {
        for (fs_type, source, expected) in [
            (
                "glusterfs",
                "192.0.2.1,192.0.2.2:/vol",
                "192.0.2.1,192.0.2.2:/vol/team/web",
            ),
            ("glusterfs", "a:vol/below/", "a:vol/below/team/web"),
            ("nfs", "a:/", "a:/team/web"),
            (
                "nfs",
                "[2001:db8::1]:/export",
                "[2001:db8::1]:/export/team/web",
            ),
            ("ceph", "a:6789,b:6789:/", "a:6789,b:6789:/team/web"),
            (
                "ceph",
                "app@0-1.cephfs=/k8s",
                "app@0-1.cephfs=/k8s/team/web",
            ),
        ] {
            let text = format!(r#"[{{"name": "b", "type": "{fs_type}", "source": "{source}"}}]"#);
            let backends = parse(&text).unwrap();
            let id = VolumeId::parse("b/team/web").unwrap();
            assert_eq!(backends[0].context(&id)["source"], expected);
        }
    }

    #[test]
    fn nodes_may_have_options_of_their_own() {
        let text = r#"[{"name": "b", "type": "ceph", "source": "a:/", "options": "name=provisioner",
            "nodeOptions": "name=node", "secrets": {"secret": "/etc/key"}, "quota": "ceph"}]"#;
        let backend = &parse(text).unwrap()[0];
        let id = VolumeId::parse("b/x").unwrap();
        assert_eq!(backend.context(&id)["options"], "name=node");
        let volume = backend.volume(BTreeMap::new()).unwrap();
        assert!(volume.options.to_string().contains("name=provisioner"));
    }

    #[test]
    fn invalid_backends_are_refused() {
        let good = r#"{"name": "b", "type": "nfs", "source": "a:/x"}"#;
        for bad in [
            "{}".to_owned(),
            good.to_owned(),
            format!("[{good}, {good}]"),
            format!("[{}]", good.replace("\"b\"", "\"../b\"")),
            format!("[{}]", good.replace("\"b\"", "\"b/c\"")),
            format!("[{}]", good.replace("\"b\"", "\"\"")),
            format!("[{}]", good.replace("nfs", "cifs")),
            format!("[{}]", good.replace("nfs", "bind")),
            format!("[{}]", good.replace("a:/x", "/srv")),
            format!("[{}]", good.replace('}', r#", "sourc": "a:/y"}"#)),
            format!("[{}]", good.replace('}', r#", "quota": "ceph"}"#)),
            format!("[{}]", good.replace('}', r#", "quota": "gluster"}"#)),
            format!(
                "[{}]",
                good.replace('}', r#", "options": "x-spc.nonsense"}"#)
            ),
            format!(
                "[{}]",
                good.replace('}', r#", "nodeOptions": "password=x"}"#)
            ),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(!error.to_string().contains("password=x"), "{error}");
        }
        parse(&format!("[{good}]")).unwrap();
        assert!(parse("[]").unwrap().is_empty());
    }
}
