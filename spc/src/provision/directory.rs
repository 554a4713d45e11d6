//! Names of directories below the root of a backend, and ids of volumes.

use std::fmt;

use crate::error::{Error, Result};

/// Longest volume id in bytes, which is the longest string of CSI.
const MAX_ID: usize = 128;

/// Largest number of nested directories.
const MAX_DEPTH: usize = 4;

/// Directory of a volume, relative to the root of its backend. No component is `.` or `..`, or has
/// characters with a meaning in a mount source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(String);

impl Directory {
    /// Checks a relative path.
    ///
    /// # Errors
    /// A component has characters other than letters, digits, `.`, `_` and `-`, begins with `.` or
    /// `-`, or there are too many.
    pub fn new(path: &str) -> Result<Self> {
        let components: Vec<&str> = path.split('/').collect();
        if components.len() <= MAX_DEPTH && components.iter().all(|name| is_plain(name)) {
            return Ok(Self(path.to_owned()));
        }
        Err(
            Error::usage(format!("bad directory name: {}", path.escape_default())).hint(format!(
                "use letters, digits, `.`, `_` and `-`, first a letter or digit, and at most \
             {MAX_DEPTH} nested directories"
            )),
        )
    }

    /// Returns the relative path.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Returns the last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// Returns the path of the parent directory, unless that is the backend's root.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// Returns the directories above this one, the outermost first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        let ends = self.0.match_indices('/');
        ends.map(|(end, _)| Self(self.0[..end].to_owned()))
    }

    /// Returns the path as one file name, with `%` for each slash. No component contains `%`.
    pub fn key(&self) -> String {
        self.0.replace('/', "%")
    }
}

/// Returns whether a name is harmless as a component of a path, a source and a file name.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.bytes().all(plain) && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Id of a volume: the name of its backend and its directory there. A DeleteVolume request contains
/// nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeId {
    /// Name of the backend.
    pub backend: String,
    /// Directory below the backend's root.
    pub directory: Directory,
}

impl VolumeId {
    /// Returns the id of a directory on a backend.
    ///
    /// # Errors
    /// The id is longer than CSI allows.
    pub fn new(backend: &str, directory: Directory) -> Result<Self> {
        let id = Self {
            backend: backend.to_owned(),
            directory,
        };
        if id.to_string().len() > MAX_ID {
            return Err(
                Error::usage(format!("the volume id {id} is longer than {MAX_ID} bytes")).hint(
                    "give the PersistentVolumeClaim a shorter name, or remove a variable from the \
                 parameter `directory` of the StorageClass",
                ),
            );
        }
        Ok(id)
    }

    /// Parses an id. Returns none for an id that no volume can have.
    pub fn parse(id: &str) -> Option<Self> {
        let (backend, directory) = id.split_once('/')?;
        is_plain(backend).then_some(())?;
        Self::new(backend, Directory::new(directory).ok()?).ok()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.directory.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        let long = format!("data/{}", "x".repeat(124));
        for bad in [
            "",
            "/",
            ".",
            "..",
            "a/..",
            "../a",
            "a//b",
            "/a",
            "a/",
            ".spc",
            "a/.b",
            "-a",
            "a b",
            "a\nb",
            "a\0",
            "a:b",
            "a,b",
            "a%b",
            "a=b",
            "ä",
            "a\\b",
            "a/b/c/d/e",
            "*",
        ] {
            assert!(Directory::new(bad).is_err(), "{bad:?}");
            assert_eq!(VolumeId::parse(&format!("data/{bad}")), None, "{bad:?}");
        }
        for bad in ["", "data", "/a", "../a", "data/", ".spc/a", &long] {
            assert_eq!(VolumeId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_id_names_backend_and_directory() {
        for good in ["data/pvc-1-2", "data/team/web.1_x", "d-1/a/b/c/d"] {
            assert_eq!(VolumeId::parse(good).unwrap().to_string(), good);
        }
        let id = VolumeId::parse("data/team/web/x").unwrap();
        assert_eq!(id.directory.key(), "team%web%x");
        assert_eq!(id.directory.parent(), Some("team/web"));
        assert_eq!(id.directory.name(), "x");
        let above: Vec<_> = id.directory.ancestors().map(|above| above.0).collect();
        assert_eq!(above, ["team", "team/web"]);
        let id = VolumeId::parse("data/x").unwrap();
        assert_eq!((id.directory.parent(), id.directory.name()), (None, "x"));
        assert_eq!(id.directory.ancestors().count(), 0);
    }
}
