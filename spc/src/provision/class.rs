//! Parameters of a StorageClass.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::provision::Directory;

/// Mode of a new directory if the StorageClass sets none. Pods may run as any user.
const DEFAULT_MODE: u32 = 0o777;

/// Parameters that a StorageClass may have.
const PARAMETERS: [&str; 5] = ["backend", "directory", "onDelete", "mode", "owner"];

/// Prefix of the parameters that csi-provisioner adds with `--extra-create-metadata`.
const METADATA: &str = "csi.storage.k8s.io/";

/// Variables of the parameter `directory`, each with the parameter of csi-provisioner that has its
/// value.
const VARIABLES: [(&str, &str); 3] = [
    ("pvc.namespace", "pvc/namespace"),
    ("pvc.name", "pvc/name"),
    ("pv.name", "pv/name"),
];

/// Treatment of the directory when its volume is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// The directory is removed.
    #[default]
    Delete,
    /// The directory stays as it is.
    Retain,
    /// The directory is moved to the archive of the backend.
    Archive,
}

/// Checked parameters of a StorageClass, for one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Name of the backend.
    pub backend: String,
    /// Directory of the volume.
    pub directory: Directory,
    /// Treatment of the directory when the volume is deleted.
    pub on_delete: OnDelete,
    /// Mode of the directory.
    pub mode: u32,
    /// User and group of the directory; without them, those of the controller.
    pub owner: Option<(u32, u32)>,
}

impl Class {
    /// Checks the parameters for a volume with this name.
    ///
    /// # Errors
    /// A parameter is missing, unknown or invalid.
    pub fn new(parameters: &BTreeMap<String, String>, name: &str) -> Result<Self> {
        let is_unknown = |key: &&String| !PARAMETERS.contains(&key.as_str()) && !is_metadata(key);
        if let Some(key) = parameters.keys().find(is_unknown) {
            return Err(
                Error::usage(format!("unknown parameter: {}", key.escape_default()))
                    .hint(format!("a StorageClass may have {}", PARAMETERS.join(", "))),
            );
        }
        let get = |key: &str| parameters.get(key).map(String::as_str);
        let bad = |key: &str, hint: &str| {
            let value = get(key).unwrap_or_default().escape_default();
            Error::usage(format!("bad parameter {key}: {value}")).hint(hint)
        };
        let backend = get("backend").ok_or_else(|| {
            Error::usage("the parameter `backend` is missing")
                .hint("name a backend of the controller in the StorageClass")
        })?;
        let directory = match get("directory") {
            Some(pattern) => expand(pattern, parameters)?,
            None => name.to_owned(),
        };
        Ok(Self {
            backend: backend.to_owned(),
            directory: Directory::new(&directory)?,
            on_delete: match get("onDelete") {
                None | Some("delete") => OnDelete::Delete,
                Some("retain") => OnDelete::Retain,
                Some("archive") => OnDelete::Archive,
                Some(_) => return Err(bad("onDelete", "use delete, retain or archive")),
            },
            mode: match get("mode") {
                None => DEFAULT_MODE,
                Some(text) => octal(text).ok_or_else(|| bad("mode", "use an octal mode: 0770"))?,
            },
            owner: match get("owner") {
                None => None,
                Some(text) => {
                    let owner = text
                        .split_once(':')
                        .and_then(|(user, group)| Some((id(user)?, id(group)?)));
                    Some(owner.ok_or_else(|| bad("owner", "use UID:GID, as numbers"))?)
                }
            },
        })
    }
}

/// Returns whether a parameter comes from csi-provisioner.
fn is_metadata(key: &str) -> bool {
    key.starts_with(METADATA)
}

/// Parses a user or group id. The largest number is not an id: chown(2) changes nothing for it.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// Parses an octal file mode.
fn octal(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok()?;
    (digits && mode <= 0o7777).then_some(mode)
}

/// Replaces the variables of a pattern by their values.
fn expand(pattern: &str, parameters: &BTreeMap<String, String>) -> Result<String> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("${") {
        text.push_str(before);
        let (name, after) = after.split_once('}').unwrap_or(("", after));
        let known = VARIABLES.iter().find(|(variable, _)| *variable == name);
        let Some((_, parameter)) = known else {
            let names = VARIABLES.map(|(name, _)| format!("${{{name}}}"));
            return Err(Error::usage(format!(
                "bad parameter directory: unknown variable {}",
                name.escape_default()
            ))
            .hint(format!("the variables are {}", names.join(", "))));
        };
        let value = parameters.get(&format!("{METADATA}{parameter}"));
        let value = value.ok_or_else(|| {
            Error::usage(format!("${{{name}}} has no value"))
                .hint("start csi-provisioner with --extra-create-metadata")
        })?;
        // A slash would add a component to the path that the class prescribes.
        if value.contains('/') {
            return Err(Error::usage(format!(
                "bad value of ${{{name}}}: {}",
                value.escape_default()
            )));
        }
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(parameters: &[(&str, &str)]) -> Result<Class> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut all: BTreeMap<String, String> = parameters.iter().map(own).collect();
        all.insert("backend".into(), "data".into());
        all.insert("csi.storage.k8s.io/pvc/namespace".into(), "team".into());
        all.insert("csi.storage.k8s.io/pvc/name".into(), "web".into());
        Class::new(&all, "pvc-1")
    }

    #[test]
    fn a_directory_is_named_by_volume_or_claim() {
        for (pattern, path) in [
            ("${pvc.namespace}/${pvc.name}", "team/web"),
            ("${pvc.namespace}_${pvc.name}", "team_web"),
            ("x/${pvc.name}", "x/web"),
            ("fixed", "fixed"),
        ] {
            let class = class(&[("directory", pattern)]).unwrap();
            assert_eq!(class.directory.path(), path);
        }
        let class = class(&[]).unwrap();
        assert_eq!(class.directory.path(), "pvc-1");
        assert_eq!((class.on_delete, class.mode), (OnDelete::Delete, 0o777));
    }

    #[test]
    fn unknown_and_invalid_parameters_are_refused() {
        for (key, value) in [
            ("ondelete", "retain"),
            ("server", "192.0.2.1"),
            ("onDelete", "keep"),
            ("onDelete", ""),
            ("mode", "rwx"),
            ("mode", "+7"),
            ("mode", "77777"),
            ("owner", "root"),
            ("owner", "1:-1"),
            ("owner", "1:4294967295"),
            ("directory", ""),
            ("directory", "../${pvc.name}"),
            ("directory", "${pvc.name"),
            ("directory", "${pv.name}"),
            ("directory", "${pvc.uid}"),
            ("directory", ".spc/volumes"),
            ("csi.storage.example.org/x", "y"),
        ] {
            class(&[(key, value)]).unwrap_err();
        }
        let hostile = BTreeMap::from([
            ("backend".to_owned(), "data".to_owned()),
            ("directory".to_owned(), "${pvc.name}".to_owned()),
            ("csi.storage.k8s.io/pvc/name".to_owned(), "a/b".to_owned()),
        ]);
        Class::new(&hostile, "x").unwrap_err();
        Class::new(&BTreeMap::new(), "x").unwrap_err();
        for name in ["..", "a\nb", "", "x/../y"] {
            let only = BTreeMap::from([("backend".to_owned(), "data".to_owned())]);
            assert!(Class::new(&only, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn owner_and_mode_are_numbers() {
        let class = class(&[("owner", "1000:2000"), ("mode", "2770")]).unwrap();
        assert_eq!((class.owner, class.mode), (Some((1000, 2000)), 0o2770));
    }
}
