//! A volume as kubelet describes it: one flat JSON object of strings, of which those with `kubernetes.io/` before their
//! names are kubelet's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::error::{Cause, Error, Result};
use crate::frontends::kubelet::flexvolume::allowlist::Allowed;
use crate::frontends::kubelet::flexvolume::policy::{self, OF_NODE};
use crate::frontends::kubelet::paths;
use crate::kinds;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::Request;
use crate::mount::request::{DEFAULT_TIMEOUT, RouteChoice};
use crate::options::secrets::is_secret;
use crate::options::{Options, Secrets};

/// What precedes the names that are kubelet's own.
const OWN: &str = "kubernetes.io/";

/// What precedes the keys of the pod's secret; their values are in base64.
pub const SECRET: &str = "kubernetes.io/secret/";

/// The longest that a mount may take.
const LONGEST: u64 = 3600;

/// What a pod writes under `options`.
const KNOWN: [&str; 5] = ["source", "servers", "path", "options", "timeout"];

/// A volume, understood.
#[derive(Debug)]
pub struct Volume {
    /// Type of the file system.
    pub fs_type: String,
    /// Source, which may name several servers.
    pub source: String,
    /// Options.
    pub options: Options,
    /// Secrets.
    pub secrets: Secrets,
    /// Limit for the whole call.
    pub timeout: Duration,
}

/// The object as it was given.
type Given = BTreeMap<String, String>;

/// Reads the object.
fn given(json: &str) -> Result<Given> {
    let fail = |cause: Cause| {
        Error::usage("bad options of the volume")
            .because(cause)
            .hint("kubelet gives them as one JSON object of strings")
    };
    let value: serde_json::Value = serde_json::from_str(json)
        // Its own text may repeat a part of a secret.
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

/// How long the call may take.
///
/// # Errors
/// It is no number of seconds, or too many.
pub fn timeout(json: &str) -> Result<Duration> {
    limit(&given(json)?)
}

fn limit(given: &Given) -> Result<Duration> {
    let Some(text) = given.get("timeout") else {
        return Ok(DEFAULT_TIMEOUT);
    };
    match text.parse() {
        Ok(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(
            Error::usage(format!("bad timeout: {}", text.escape_default()))
                .hint(format!("a number of seconds from 1 to {LONGEST}")),
        ),
    }
}

/// A name for the volume: the same on all nodes, for all pods.
///
/// # Errors
/// It has no type or no source.
pub fn name(json: &str) -> Result<String> {
    let (fs_type, source) = type_and_source(&given(json)?)?;
    let what = format!("{fs_type}-{source}");
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let short: String = what.chars().map(plain).take(80).collect();
    // Other characters may make another volume.
    Ok(format!("{short}-{:08x}", number(&what) >> 32))
}

/// The same number for the same text, in every version (FNV-1a).
fn number(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What kubelet itself says.
fn own<'a>(given: &'a Given, name: &str) -> Option<&'a str> {
    let value = given.get(&format!("{OWN}{name}")).map(String::as_str);
    value.filter(|value| !value.is_empty())
}

/// The type and the source.
fn type_and_source(given: &Given) -> Result<(String, String)> {
    let asked = own(given, "fsType");
    let source = source(given, asked)?;
    let fs_type = match asked {
        Some(fs_type) => fs_type.to_owned(),
        None => kinds::infer(&source)?.fs_type.to_owned(),
    };
    Ok((fs_type, source))
}

impl Volume {
    /// Reads the object, and checks what a pod may ask for on a node that allows this.
    ///
    /// # Errors
    /// Something is missing, unknown, or not a pod's to ask for.
    pub fn read(json: &str, allowed: &Allowed) -> Result<Self> {
        let given = given(json)?;
        let unknown = |key: &&String| !key.starts_with(OWN) && !KNOWN.contains(&key.as_str());
        if let Some(key) = given.keys().find(unknown) {
            return Err(Error::usage(format!("unknown option: {}", key.escape_default()))
                .hint(format!("known are {}; options of the file system go into `options`, secrets into a secret of the pod", KNOWN.join(", "))));
        }
        let mut options = Options::default();
        let mut secrets = Secrets::default();
        if let Some(list) = given.get("options") {
            options = Options::parse([list.as_str()]).map_err(|error| {
                error.hint("put it into a secret, and name that in secretRef: everybody who may read the pod sees its options")
            })?;
        }
        if options.value(SERVERS).is_some() {
            return Err(Error::usage(format!("bad option {SERVERS}"))
                .hint("a volume names its servers in `servers`"));
        }
        for (key, value) in &given {
            if let Some(key) = key.strip_prefix(SECRET) {
                let value = decoded(key, value)?;
                if is_secret(key) {
                    secrets.give(key, value)?;
                } else {
                    options.push(format!("{key}={value}"))?;
                }
            }
        }
        let (fs_type, source) = type_and_source(&given)?;
        let read_only = options.read_only() || own(&given, "readwrite") == Some("ro");
        let of_node = allowed.options(&fs_type, &source);
        let policy = match of_node {
            Some(_) => OF_NODE,
            None => policy::for_type(&fs_type)?,
        };
        if of_node.is_none() {
            policy.check_source(&fs_type, &source)?;
        }
        policy.check_options(&fs_type, &options)?;
        // The node's count more, for they come last.
        if let Some(of_node) = of_node {
            options.extend(of_node);
        }
        if read_only {
            options.push("ro".into())?;
        }
        policy.complete(&mut options, own(&given, "mounterArgs.FsGroup"))?;
        Ok(Self {
            fs_type,
            source,
            options,
            secrets,
            timeout: limit(&given)?,
        })
    }

    /// The request for a target.
    ///
    /// # Errors
    /// The target is none of kubelet's, or the request cannot be one.
    pub fn request(&self, target: &str) -> Result<Request> {
        let path = PathBuf::from(target);
        paths::check(&path)?;
        Request {
            fs_type: self.fs_type.clone(),
            inferred: None,
            source: self.source.clone(),
            no_symlink_tail: paths::depth(&path),
            target: path,
            options: self.options.clone(),
            secrets: self.secrets.clone(),
            timeout: Some(self.timeout),
            route: RouteChoice::Auto,
            over_system_directory: false,
        }
        .validated()
    }
}

/// The source: as it is, or made of servers and a path.
fn source(given: &Given, fs_type: Option<&str>) -> Result<String> {
    let get = |key: &str| given.get(key).filter(|value| !value.is_empty());
    match (get("source"), get("servers"), get("path")) {
        (Some(source), None, None) => Ok(source.clone()),
        (None, Some(list), Some(path)) => {
            let Some(fs_type) = fs_type else {
                return Err(Error::usage("no fsType is given")
                    .hint("a volume with servers and a path needs one"));
            };
            kinds::with_servers(fs_type, path, &servers::list_of(list)?)
        }
        _ => Err(Error::usage("no source is given")
            .hint("give either source, as of `spc mount`, or servers and path")),
    }
}

/// The text of a secret, without the line break at its end.
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
    fn a_volume_as_kubelet_describes_it() {
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
    fn several_servers_are_one_source() {
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
    fn what_is_not_understood_is_refused_and_secrets_are_not_repeated() {
        let json = |more: serde_json::Value| {
            let mut all = serde_json::json!({"kubernetes.io/fsType": "nfs"});
            if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
                all.extend(more.clone());
            }
            volume(all).unwrap_err().to_string()
        };
        for (more, says) in [
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
                error.contains(says) && !error.contains("hunter2"),
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
    fn the_node_says_with_which_options_its_own_is_mounted() {
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
    fn a_volume_has_one_name() {
        let of = |source: &str| {
            let json = serde_json::json!({"kubernetes.io/fsType": "nfs", "source": source});
            name(&json.to_string()).unwrap()
        };
        assert_eq!(of("h:/x"), of("h:/x"));
        assert_ne!(of("h:/x/y"), of("h:/x-y"));
        assert!(of("h:/x").starts_with("nfs-h--x-"));
        assert!(of(&format!("h:/{}", "x".repeat(500))).len() < 100);
    }
}
