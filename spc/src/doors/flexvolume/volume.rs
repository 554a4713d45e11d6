//! A volume as kubelet describes it: one flat JSON object of strings, of which those with `kubernetes.io/` before their
//! names are kubelet's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::policy;
use crate::doors::kubelet;
use crate::error::{Error, Result};
use crate::kinds;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::request::{DEFAULT_TIMEOUT, RouteChoice};
use crate::mount::secrets::is_secret;
use crate::mount::{Options, Request, Secrets};

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
    /// Sources, to be tried one after the other.
    pub sources: Vec<String>,
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
    let fail = |cause: String| {
        Error::usage("bad options of the volume")
            .because(cause)
            .hint("kubelet gives them as one JSON object of strings")
    };
    let value: serde_json::Value = serde_json::from_str(json)
        // Its own text may repeat a part of a secret.
        .map_err(|e| fail(format!("not JSON, at column {}", e.column())))?;
    let serde_json::Value::Object(object) = value else {
        return Err(fail("not an object".into()));
    };
    let text = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((key, text)),
        _ => Err(fail(format!("{} is not a string", key.escape_default()))),
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
/// As [`Volume::read`].
pub fn name(json: &str) -> Result<String> {
    let volume = Volume::read(json)?;
    let what = format!("{}-{}", volume.fs_type, volume.sources.join("-"));
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

impl Volume {
    /// Reads the object, and checks what a pod may ask for.
    ///
    /// # Errors
    /// Something is missing, unknown, or not a pod's to ask for.
    pub fn read(json: &str) -> Result<Self> {
        let given = given(json)?;
        let own = |name: &str| {
            let value = given.get(&format!("{OWN}{name}")).map(String::as_str);
            value.filter(|value| !value.is_empty())
        };
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
        let asked = own("fsType");
        let sources = sources(&given, asked)?;
        let fs_type = match asked {
            Some(fs_type) => fs_type.to_owned(),
            None => kinds::infer(&sources[0])?.fs_type.to_owned(),
        };
        let policy = policy::of(&fs_type)?;
        for source in &sources {
            policy.check_source(&fs_type, source)?;
        }
        policy.check_options(&fs_type, &options)?;
        if own("readwrite") == Some("ro") {
            options.push("ro".into())?;
        }
        policy.complete(&mut options, own("mounterArgs.FsGroup"))?;
        Ok(Self {
            fs_type,
            sources,
            options,
            secrets,
            timeout: limit(&given)?,
        })
    }

    /// The requests for a target, of which one is to succeed. Each target begins with another server.
    ///
    /// # Errors
    /// The target is none of kubelet's, or a request cannot be one.
    pub fn requests(&self, target: &str) -> Result<Vec<Request>> {
        let path = PathBuf::from(target);
        kubelet::check(&path)?;
        let mut sources = self.sources.clone();
        let first = usize::try_from(number(target) >> 32).unwrap_or(0) % sources.len().max(1);
        sources.rotate_left(first);
        let request = |source| {
            Request {
                fs_type: self.fs_type.clone(),
                inferred: None,
                source,
                plain_tail: kubelet::depth(&path),
                target: path.clone(),
                options: self.options.clone(),
                secrets: self.secrets.clone(),
                timeout: self.timeout,
                route: RouteChoice::Auto,
                over_system_directory: false,
            }
            .validated()
        };
        sources.into_iter().map(request).collect()
    }
}

/// The sources: one as it is, or made of servers and a path.
fn sources(given: &Given, fs_type: Option<&str>) -> Result<Vec<String>> {
    let get = |key: &str| given.get(key).filter(|value| !value.is_empty());
    match (get("source"), get("servers"), get("path")) {
        (Some(source), None, None) => Ok(vec![source.clone()]),
        (None, Some(list), Some(path)) => {
            let Some(fs_type) = fs_type else {
                return Err(Error::usage("no fsType is given")
                    .hint("a volume with servers and a path needs one"));
            };
            Ok(vec![servers::with(
                fs_type,
                path,
                &servers::list_of(list)?,
            )?])
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
        Volume::read(&json.to_string())
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
        assert_eq!(volume.sources, ["//h/s"]);
        assert_eq!(volume.secrets.get("password").unwrap().expose(), "hunter2");
        assert_eq!(volume.timeout, Duration::from_secs(30));
        assert!(volume.options.read_only());
        for (key, value) in [("username", "me"), ("gid", "2000"), ("vers", "3.1.1")] {
            assert_eq!(volume.options.value(key), Some(value), "{key}");
        }
        let requests = volume.requests(VOLUME).unwrap();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].plain_tail, 5);
        assert!(volume.requests("mnt").is_err());
    }

    #[test]
    fn several_servers_are_one_source() {
        let json = serde_json::json!({
            "kubernetes.io/fsType": "nfs", "servers": "a, b,c", "path": "/x",
        });
        let requests = volume(json).unwrap().requests(VOLUME).unwrap();
        let sources: Vec<_> = requests.into_iter().map(|r| r.source).collect();
        assert_eq!(sources, ["a,b,c:/x"]);
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
            let error = Volume::read(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
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
