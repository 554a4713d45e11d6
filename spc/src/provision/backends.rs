//! Backends: shares on which volumes are created, listed in a file by the administrator.
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

/// Files of this size, in bytes, or larger are refused.
const MAX_SIZE: u64 = 64 * 1024;

/// Longest name of a backend in bytes.
const MAX_NAME: usize = 40;

/// Types on which a directory can be a volume: their files have owners of their own.
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

/// Options of the controller's own mount. The controller runs no programs from it and uses no
/// devices on it. A dead mount is not repaired, because the next call mounts again.
const OWN_OPTIONS: &str = "nosuid,nodev,noexec,x-spc.repair=no,x-mount.mkdir=0700";

/// Mechanism that limits the size of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quota {
    /// Attribute of the directory on CephFS.
    Ceph,
}

/// Share on which volumes are created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Name in StorageClasses and volume ids.
    pub name: String,
    /// Type of the file system.
    #[serde(rename = "type")]
    pub fs_type: String,
    /// Mount source. The volumes are directories below it.
    pub source: String,
    /// Mount options.
    #[serde(default)]
    pub options: String,
    /// Mount options of the nodes, if they differ.
    #[serde(default)]
    pub node_options: Option<String>,
    /// Secrets of the mount: the name of each, and the file that contains it.
    #[serde(default)]
    pub secrets: BTreeMap<String, PathBuf>,
    /// Mechanism that limits the size of volumes; none for volumes without a limit.
    #[serde(default)]
    pub quota: Option<Quota>,
}

/// Reads the file of backends and checks each backend.
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

/// Parses the text of the file and checks each backend.
///
/// # Errors
/// The text is not a list of backends, a backend is invalid, or two have the same name.
pub fn parse(text: &str) -> Result<Vec<Backend>> {
    let backends: Vec<Backend> =
        serde_json::from_str(text).map_err(|e| Error::usage("bad JSON").because(e.to_string()))?;
    for (at, backend) in backends.iter().enumerate() {
        let in_backend = |error: Error| {
            let name = backend.name.escape_default();
            let failed = Error::usage(format!("backend {name}")).because(error.summary());
            match error.hint_text() {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        };
        backend.check().map_err(in_backend)?;
        if backends[..at]
            .iter()
            .any(|other| other.name == backend.name)
        {
            return Err(in_backend(Error::usage("two backends have this name")));
        }
    }
    Ok(backends)
}

/// Reads a text file that is smaller than [`MAX_SIZE`].
fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)? as u64 == MAX_SIZE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

impl Backend {
    /// Checks the fields, the mount of the controller, and the mounts of nodes.
    fn check(&self) -> Result<()> {
        let (fs_type, source) = kinds::canonical(self.fs_type.clone(), self.source.clone())?;
        let is_one_component = Directory::new(&self.name).is_ok_and(|name| name.parent().is_none());
        if !is_one_component || self.name.len() > MAX_NAME {
            return Err(Error::usage("bad name").hint(format!(
                "use letters, digits, `.`, `_` and `-`, at most {MAX_NAME} of them"
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
        // Any absolute path: nothing is mounted here.
        let target = "/run";
        self.volume(BTreeMap::new())?.request(target)?;
        // A node would refuse a bad option only when the first pod starts.
        let directory = Directory::new("x")?;
        let on_node = Spec {
            attributes: self.context(&VolumeId::new(&self.name, directory)?),
            ..Spec::default()
        };
        let on_node = Volume::new(&on_node, Author::Administrator)?;
        on_node.request(target).map(drop)
    }

    /// Reads the secrets of the mount, each without the line feed at its end.
    ///
    /// # Errors
    /// A file cannot be read, or is too large.
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
            let secret = text.strip_suffix('\n').unwrap_or(&text).to_owned();
            Ok((key.clone(), secret))
        };
        self.secrets.iter().map(read).collect()
    }

    /// Returns the root of the backend as a volume that the controller mounts.
    ///
    /// # Errors
    /// An option or a secret is invalid.
    pub fn volume(&self, secrets: BTreeMap<String, String>) -> Result<Volume> {
        let attributes = [("source", &self.source), ("options", &self.options)];
        let owned = |(key, value): (&str, &String)| (key.to_owned(), value.clone());
        let spec = Spec {
            fs_type: Some(self.fs_type.clone()),
            attributes: attributes.map(owned).into(),
            mount_options: vec![OWN_OPTIONS.into()],
            secrets,
            ..Spec::default()
        };
        Volume::new(&spec, Author::Administrator)
    }

    /// Returns the volume context of CSI: the attributes with which a node mounts a volume.
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
