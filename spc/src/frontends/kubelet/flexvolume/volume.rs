//! Volume as kubelet describes it: one flat JSON object of strings.
//!
//! Keys that begin with `kubernetes.io/` are kubelet's own. The others come from the volume in the
//! pod or PersistentVolume.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fnv::FnvHasher;

use crate::error::{Cause, Error, Result};
use crate::frontends::kubelet::flexvolume::allowlist::Allowed;
use crate::frontends::kubelet::flexvolume::policy::{self, Policy};
use crate::frontends::kubelet::paths;
use crate::kinds;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::Request;
use crate::mount::request::DEFAULT_TIMEOUT;
use crate::options::secrets::is_secret;
use crate::options::{Options, Secrets};

/// Prefix of kubelet's own keys.
const PREFIX: &str = "kubernetes.io/";

/// Prefix of the keys of the pod's secret, whose values are in base64.
pub const SECRET: &str = "kubernetes.io/secret/";

/// Largest value of `timeout`, in seconds.
const MAX_TIMEOUT: u64 = 3600;

/// Keys that a volume may have besides those of kubelet.
const KNOWN: [&str; 5] = ["source", "servers", "path", "options", "timeout"];

/// Parsed volume.
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
    /// Values of the pod's secret.
    pub secrets: Secrets,
    /// Limit for the whole call.
    pub timeout: Duration,
    /// Whether the helper runs in a sandbox: not if the node's administrator allowed this volume,
    /// which may need files of the node.
    pub sandboxed: bool,
}

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

/// Returns the time limit for mounting a volume.
///
/// # Errors
/// The object is invalid, or its `timeout` is not a number of seconds from 1 to 3600.
pub fn timeout(json: &str) -> Result<Duration> {
    limit(&parse_object(json)?)
}

fn limit(given: &Given) -> Result<Duration> {
    let Some(text) = given.get("timeout") else {
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

/// Returns a name for the volume, which is the same on all nodes and for all pods.
///
/// # Errors
/// The object is invalid, or has no type or source.
pub fn name(json: &str) -> Result<String> {
    let (fs_type, source) = type_and_source(&parse_object(json)?)?;
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

/// Returns type and source. Without a type, the source determines it.
fn type_and_source(given: &Given) -> Result<(String, String)> {
    let given_type = own(given, "fsType");
    let source = source(given, given_type)?;
    let fs_type = match given_type {
        Some(fs_type) => fs_type.to_owned(),
        None => kinds::infer(&source)?.fs_type.to_owned(),
    };
    Ok((fs_type, source))
}

impl Volume {
    /// Parses the JSON object, and checks that a pod may use the volume. `allowed` has the volumes
    /// that the node allows in addition.
    ///
    /// # Errors
    /// A key is missing, unknown or invalid, or pods may not use such a volume.
    pub fn read(json: &str, allowed: &Allowed) -> Result<Self> {
        let given = parse_object(json)?;
        let unknown = |key: &&String| !key.starts_with(PREFIX) && !KNOWN.contains(&key.as_str());
        if let Some(key) = given.keys().find(unknown) {
            return Err(Error::usage(format!("unknown option: {}", key.escape_default()))
                .hint(format!("the options of a volume are {}; those of the file system belong into `options`, secrets into a secret of the pod", KNOWN.join(", "))));
        }
        let mut options = Options::default();
        let mut secrets = Secrets::default();
        if let Some(list) = given.get("options") {
            options = Options::parse([list.as_str()]).map_err(|error| {
                error.hint("put it into a secret named in secretRef: anybody who may read the pod sees its options")
            })?;
        }
        if options.value(SERVERS).is_some() {
            return Err(Error::usage(format!("bad option {SERVERS}"))
                .hint("name the servers of a volume in `servers`"));
        }
        for (key, value) in &given {
            if let Some(key) = key.strip_prefix(SECRET) {
                let value = decoded(key, value)?;
                if is_secret(key) {
                    secrets.add_value(key, value)?;
                } else {
                    options.push(format!("{key}={value}"))?;
                }
            }
        }
        let (fs_type, source) = type_and_source(&given)?;
        let read_only = options.read_only() || own(&given, "readwrite") == Some("ro");
        let node_options = allowed.options(&fs_type, &source);
        let policy = match node_options {
            Some(_) => policy::allowed_by_node(&fs_type),
            None => policy::for_type(&fs_type)?,
        };
        if node_options.is_none() {
            policy.check_source(&fs_type, &source)?;
            Policy::check_secrets(&source, &secrets)?;
        }
        policy.check_options(&fs_type, &options)?;
        // Appended, so that they override options of the pod.
        if let Some(node_options) = node_options {
            options.extend(node_options);
        }
        if read_only {
            options.push("ro".into())?;
        }
        let group = own(&given, "mounterArgs.FsGroup");
        policy.complete(&mut options, group)?;
        Ok(Self {
            // kubelet leaves a read-only volume as it is.
            has_group_without_owners: group.is_some() && !policy.has_owners() && !read_only,
            fs_type,
            source,
            options,
            secrets,
            timeout: limit(&given)?,
            sandboxed: node_options.is_none(),
        })
    }

    /// Checks that kubelet will not change group and mode of files for the pod's group, where the
    /// mount shows the same owner for all files.
    ///
    /// # Errors
    /// kubelet would change them.
    pub fn check_fs_group(&self) -> Result<()> {
        if !self.has_group_without_owners {
            return Ok(());
        }
        Err(Error::usage(format!(
            "fsGroup is not for volumes of type {} with the driver spc/spc",
            self.fs_type
        ))
        .because("kubelet would change every file on the server")
        .hint("use `driver: spc/no-fsgroup`, and a secret of that type: the group becomes an option of the mount"))
    }

    /// Returns the request to mount the volume on `target`.
    ///
    /// # Errors
    /// The target is not an absolute path, or the request is invalid.
    pub fn request(&self, target: &str) -> Result<Request> {
        let path = PathBuf::from(target);
        paths::check(&path)?;
        Request {
            options: self.options.clone(),
            secrets: self.secrets.clone(),
            timeout: Some(self.timeout),
            no_symlink_tail: paths::depth(&path),
            sandboxed: self.sandboxed,
            ..Request::new(self.fs_type.as_str(), self.source.as_str(), path)
        }
        .validated()
    }
}

/// Returns the source, either as given or composed of servers and a path.
fn source(given: &Given, fs_type: Option<&str>) -> Result<String> {
    let get = |key: &str| given.get(key).filter(|value| !value.is_empty());
    match (get("source"), get("servers"), get("path")) {
        (Some(source), None, None) => Ok(source.clone()),
        (None, Some(list), Some(path)) => {
            let Some(fs_type) = fs_type else {
                return Err(Error::usage("no fsType is given")
                    .hint("a volume with `servers` and `path` needs one"));
            };
            kinds::with_servers(fs_type, path, &servers::parse_list(list)?)
        }
        _ => Err(Error::usage("no source is given")
            .hint("give either `source`, as for `spc mount`, or `servers` and `path`")),
    }
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
        Volume::read(&json.to_string(), &Allowed::default())
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
        let volume = Volume::read(&json.to_string(), &allowed).unwrap();
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
                "keyring of the node",
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
            let error = Volume::read(bad, &Allowed::default())
                .unwrap_err()
                .to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn options_of_the_node_apply_to_its_own_volumes() {
        let allowed = Allowed::parse("allow bind /srv ro,nosuid\nallow x tag rw,a=b").unwrap();
        let read = |fs_type: &str, source: &str, options: &str, access: &str| {
            let json = serde_json::json!({
                "kubernetes.io/fsType": fs_type, "source": source, "options": options,
                "kubernetes.io/readwrite": access,
            });
            let volume = Volume::read(&json.to_string(), &allowed)?;
            Ok::<_, Error>((volume.options.to_string(), volume.options.read_only()))
        };
        let (options, read_only) = read("bind", "/srv", "rw,noexec", "rw").unwrap();
        assert!(
            read_only && options.starts_with("rw,noexec,ro,nosuid"),
            "{options}"
        );
        assert!(read("x", "tag", "", "ro").unwrap().1);
        assert!(read("x", "tag", "ro", "rw").unwrap().1);
        assert!(!read("x", "tag", "", "rw").unwrap().1);
        assert!(read("bind", "/srv", "rbind", "rw").is_err());
        assert!(read("bind", "/srv/", "", "rw").is_err());
        assert!(read("x", "other", "", "rw").is_err());
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
