//! Volume as kubelet describes it: one flat JSON object of strings.
//!
//! Keys that begin with `kubernetes.io/` are kubelet's own. The others come from the volume in the
//! pod or PersistentVolume.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fnv::FnvHasher;

use crate::error::{Cause, Error, Result};
use crate::volume::allowlist::Allowed;
use crate::volume::{Author, Spec, Volume};

/// Prefix of kubelet's own keys.
const PREFIX: &str = "kubernetes.io/";

/// Prefix of the keys of the pod's secret, whose values are in base64.
pub const SECRET: &str = "kubernetes.io/secret/";

/// Keys and values of the JSON object.
type Given = BTreeMap<String, String>;

/// Parses the JSON object. Errors do not repeat its values.
fn parse_object(json: &str) -> Result<Given> {
    let fail = |cause: Cause| {
        Error::usage("bad options of the volume")
            .because(cause)
            .hint("kubelet passes them as one JSON object of strings")
    };
    let value: serde_json::Value = serde_json::from_str(json)
        // The text of the JSON error may repeat a part of a secret.
        .map_err(|e| fail(format!("not JSON, at column {}", e.column()).into()))?;
    let serde_json::Value::Object(object) = value else {
        return Err(fail("not an object".into()));
    };
    let text = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((key, text)),
        _ => Err(fail(
            format!("{} is not a string", key.escape_default()).into(),
        )),
    };
    object.into_iter().map(text).collect()
}

/// Returns the description of the volume in the object; with its secret, if `with_secret`.
fn spec(given: &Given, with_secret: bool) -> Result<Spec> {
    let mut spec = Spec {
        fs_type: own(given, "fsType").map(str::to_owned),
        read_only: own(given, "readwrite") == Some("ro"),
        group: own(given, "mounterArgs.FsGroup").map(str::to_owned),
        ..Spec::default()
    };
    for (key, value) in given {
        match (key.strip_prefix(SECRET), key.starts_with(PREFIX)) {
            (Some(key), _) if with_secret => {
                spec.secrets.insert(key.to_owned(), decoded(key, value)?);
            }
            (None, false) => {
                spec.attributes.insert(key.clone(), value.clone());
            }
            _ => {}
        }
    }
    Ok(spec)
}

/// Parses the JSON object, and checks that a pod may use the volume. `allowed` has the volumes
/// that the node allows in addition.
///
/// # Errors
/// A key is missing, unknown or invalid, or pods may not use such a volume.
pub fn read(json: &str, allowed: &Allowed) -> Result<Volume> {
    Volume::new(&spec(&parse_object(json)?, true)?, Author::Pod(allowed))
}

/// Returns the time limit for mounting a volume.
///
/// # Errors
/// The object is invalid, or its `timeout` is not a number of seconds from 1 to 3600.
pub fn timeout(json: &str) -> Result<Duration> {
    spec(&parse_object(json)?, false)?.timeout()
}

/// Returns a name for the volume, which is the same on all nodes and for all pods.
///
/// # Errors
/// The object is invalid, or has no type or source.
pub fn name(json: &str) -> Result<String> {
    let (fs_type, source) = spec(&parse_object(json)?, false)?.type_and_source()?;
    let full = format!("{fs_type}-{source}");
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let short: String = full.chars().map(plain).take(80).collect();
    // Sources that differ only in replaced or cut characters get different numbers.
    Ok(format!("{short}-{:08x}", fnv1a(&full) >> 32))
}

/// Returns the FNV-1a hash of a text, which must stay the same in every version of spc.
fn fnv1a(text: &str) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// Returns the value of one of kubelet's own keys, unless it is empty.
fn own<'a>(given: &'a Given, name: &str) -> Option<&'a str> {
    let value = given.get(&format!("{PREFIX}{name}")).map(String::as_str);
    value.filter(|value| !value.is_empty())
}

/// Decodes the value of a secret, without a line break at its end.
fn decoded(key: &str, value: &str) -> Result<String> {
    let fail = |cause: &str| {
        Error::usage(format!("bad secret {}", key.escape_default()))
            .because(cause)
            .hint("a secret is one line of text")
    };
    let bytes = BASE64_STANDARD
        .decode(value)
        .map_err(|_| fail("not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("not UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if line.contains(['\n', '\0']) {
        return Err(fail("it holds a line break or a NUL byte"));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "/var/lib/kubelet/pods/1-2/volumes/x~spc/data";

    fn volume(json: serde_json::Value) -> Result<Volume> {
        read(&json.to_string(), &Allowed::default())
    }

    #[test]
    fn volume_of_kubelet_is_parsed() {
        let json = serde_json::json!({
            "kubernetes.io/fsType": "cifs", "kubernetes.io/readwrite": "ro",
            "kubernetes.io/pvOrVolumeName": "data", "kubernetes.io/pod.name": "web-1",
            "kubernetes.io/pod.namespace": "default", "kubernetes.io/pod.uid": "1-2",
            "kubernetes.io/serviceAccount.name": "default",
            "kubernetes.io/mounterArgs.FsGroup": "2000",
            "kubernetes.io/secret/username": "bWU=", "kubernetes.io/secret/password": "aHVudGVyMgo=",
            "source": "//h/s", "options": "vers=3.1.1", "timeout": "30",
        });
        let volume = volume(json).unwrap();
        assert_eq!(volume.source, "//h/s");
        assert_eq!(volume.secrets.get("password").unwrap().expose(), "hunter2");
        assert_eq!(volume.timeout, Duration::from_secs(30));
        assert!(volume.options.read_only());
        for (key, value) in [("username", "me"), ("gid", "2000"), ("vers", "3.1.1")] {
            assert_eq!(volume.options.value(key), Some(value), "{key}");
        }
        assert_eq!(volume.request(VOLUME).unwrap().no_symlink_tail, 5);
        assert!(volume.request("mnt").is_err());
    }

    #[test]
    fn a_group_is_refused_where_kubelet_would_change_files_without_owners() {
        for (fs_type, source, options, access, refused) in [
            ("fuse.sshfs", "a@h:", "", "rw", true),
            ("fuse.s3fs", "bucket", "gid=5", "rw", true),
            ("cifs", "//h/s", "", "rw", true),
            ("cifs", "//h/s", "", "ro", false),
            ("nfs", "h:/x", "", "rw", false),
        ] {
            let json = serde_json::json!({
                "kubernetes.io/fsType": fs_type, "source": source, "options": options,
                "kubernetes.io/readwrite": access, "kubernetes.io/mounterArgs.FsGroup": "7",
            });
            let mut given = json.clone();
            let checked = volume(json).unwrap().check_fs_group();
            assert_eq!(checked.is_err(), refused, "{fs_type} {access}");
            given["kubernetes.io/mounterArgs.FsGroup"] = "".into();
            assert!(volume(given).unwrap().check_fs_group().is_ok());
        }
        // The same for a volume that the node allows.
        let allowed = Allowed::parse("allow fuse.sshfs a@h: reconnect").unwrap();
        let json = serde_json::json!({
            "kubernetes.io/fsType": "fuse.sshfs", "source": "a@h:",
            "kubernetes.io/mounterArgs.FsGroup": "7",
        });
        let volume = read(&json.to_string(), &allowed).unwrap();
        assert!(volume.check_fs_group().is_err());
        assert_eq!(volume.options.value("gid"), Some("7"));
    }

    #[test]
    fn servers_and_path_become_one_source() {
        let json = serde_json::json!({
            "kubernetes.io/fsType": "nfs", "servers": "a, b,c", "path": "/x",
        });
        let request = volume(json).unwrap().request(VOLUME).unwrap();
        assert_eq!(request.source, "a,b,c:/x");
        let json = serde_json::json!({
            "kubernetes.io/fsType": "nfs", "source": "a:/x", "options": "x-spc.servers=@/etc/passwd",
        });
        assert!(volume(json).is_err());
    }

    #[test]
    fn invalid_volumes_are_refused_without_repeating_secrets() {
        let json = |more: serde_json::Value| {
            let mut all = serde_json::json!({"kubernetes.io/fsType": "nfs"});
            if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
                all.extend(more.clone());
            }
            volume(all).unwrap_err().to_string()
        };
        for (more, expected) in [
            (serde_json::json!({}), "no source"),
            (
                serde_json::json!({"source": "h:/x", "path": "/x"}),
                "no source",
            ),
            (
                serde_json::json!({"source": "h:/x", "timeout": "0"}),
                "bad timeout",
            ),
            (
                serde_json::json!({"source": "rbd:a/b", "kubernetes.io/fsType": "ext4"}),
                "whoever serves a disk",
            ),
            (
                serde_json::json!({"source": "h:/x", "vers": "3"}),
                "unknown option: vers",
            ),
            (
                serde_json::json!({"source": "h:/x", "options": "password=hunter2"}),
                "secretRef",
            ),
            (
                serde_json::json!({"source": "h:/x", "kubernetes.io/secret/password": "hunter2?"}),
                "not base64",
            ),
            (
                serde_json::json!({"source": "h:/x", "kubernetes.io/secret/key": "aHVudGVyMgphCg=="}),
                "line break",
            ),
            (
                serde_json::json!({"source": "h:/x", "options": 7}),
                "options is not a string",
            ),
        ] {
            let error = json(more);
            assert!(
                error.contains(expected) && !error.contains("hunter2"),
                "{error}"
            );
        }
        for bad in ["", "[]", "hunter2", r#"{"a": "hunter2"#] {
            let error = read(bad, &Allowed::default()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn options_of_the_node_apply_to_its_own_volumes() {
        let allowed = Allowed::parse("allow bind /srv ro,nosuid\nallow x tag rw,a=b").unwrap();
        let read_one = |fs_type: &str, source: &str, options: &str, access: &str| {
            let json = serde_json::json!({
                "kubernetes.io/fsType": fs_type, "source": source, "options": options,
                "kubernetes.io/readwrite": access,
            });
            let volume = read(&json.to_string(), &allowed)?;
            Ok::<_, Error>((volume.options.to_string(), volume.options.read_only()))
        };
        let (options, read_only) = read_one("bind", "/srv", "rw,noexec", "rw").unwrap();
        assert!(
            read_only && options.starts_with("rw,noexec,ro,nosuid"),
            "{options}"
        );
        assert!(read_one("x", "tag", "", "ro").unwrap().1);
        assert!(read_one("x", "tag", "ro", "rw").unwrap().1);
        assert!(!read_one("x", "tag", "", "rw").unwrap().1);
        assert!(read_one("bind", "/srv", "rbind", "rw").is_err());
        assert!(read_one("bind", "/srv/", "", "rw").is_err());
        assert!(read_one("x", "other", "", "rw").is_err());
    }

    #[test]
    fn name_of_a_volume_depends_on_its_source_only() {
        let name_of = |source: &str| {
            let json = serde_json::json!({"kubernetes.io/fsType": "nfs", "source": source});
            name(&json.to_string()).unwrap()
        };
        assert_eq!(name_of("h:/x"), name_of("h:/x"));
        assert_ne!(name_of("h:/x/y"), name_of("h:/x-y"));
        assert!(name_of("h:/x").starts_with("nfs-h--x-"));
        assert!(name_of(&format!("h:/{}", "x".repeat(500))).len() < 100);
    }
}
