//! Request for a mount, validated without any I/O.

use std::path::PathBuf;
use std::time::Duration;

use crate::block::filesystem::MKFS;
use crate::error::{Error, Result};
use crate::kinds::block::AUTO;
use crate::kinds::servers::{self, SERVERS};
use crate::kinds::{self, Inferred};
use crate::mount::remount::REMOUNT;
use crate::options::repair_scope::RepairScope;
use crate::options::{Options, Secrets};
use crate::servers::order::Order;
use crate::state::csi::CsiVolume;

/// Time limit of a mount without a limit of its own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Route to the host that the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RouteChoice {
    /// Chosen by the properties of the helper.
    #[default]
    Auto,
    /// The shim redirects the helper's mount(2) to the host.
    Preload,
    /// The helper mounts in the container, and spc moves the finished mount to the host.
    Graft,
}

/// Request for a mount.
#[derive(Debug)]
pub struct Request {
    /// File system type, as for `mount -t`.
    pub fs_type: String,
    /// Type inferred from the source, if the request names none.
    pub inferred: Option<Inferred>,
    /// Source.
    pub source: String,
    /// Target, as the user wrote it.
    pub target: PathBuf,
    /// Mount options.
    pub options: Options,
    /// Secrets. Requests are compared without them.
    pub secrets: Secrets,
    /// Time limit for the whole mount, if the user set one.
    pub timeout: Option<Duration>,
    /// Route to the host.
    pub route: RouteChoice,
    /// Whether the target may be a system directory, such as `/etc`.
    pub over_system_directory: bool,
    /// Number of components at the end of the target that must not be symbolic links, even root's.
    pub no_symlink_tail: usize,
    /// Whether the helper runs in a sandbox, because a pod chose the server.
    pub sandboxed: bool,
    /// Ids of the mount whose root the source of a bind mount must be.
    pub source_mount: Option<(u64, u64)>,
    /// Volume of CSI that the mount belongs to.
    pub csi: Option<CsiVolume>,
}

impl Request {
    /// Returns a request with default settings: no options, no secrets, no time limit of its own,
    /// and whichever route fits. An empty `fs_type` is inferred from the source.
    pub fn new(
        fs_type: impl Into<String>,
        source: impl Into<String>,
        target: impl Into<PathBuf>,
    ) -> Self {
        Self {
            fs_type: fs_type.into(),
            inferred: None,
            source: source.into(),
            target: target.into(),
            options: Options::default(),
            secrets: Secrets::default(),
            timeout: None,
            route: RouteChoice::Auto,
            over_system_directory: false,
            no_symlink_tail: 0,
            sandboxed: false,
            source_mount: None,
            csi: None,
        }
    }

    /// Validates the request, infers a missing type, and adds the servers of an option to the
    /// source.
    ///
    /// # Errors
    /// Type, source, target or an option is missing or invalid.
    pub fn validated(mut self) -> Result<Self> {
        self.options.check_own()?;
        if self.options.has("bind") || self.options.has("rbind") {
            self.fs_type = "bind".into();
        }
        if self.source.is_empty() {
            return Err(Error::usage("the source is empty"));
        }
        // The mount that a remount changes has its type.
        let is_new = !self.options.has(REMOUNT);
        if is_new && (self.fs_type.is_empty() || self.fs_type == "auto") {
            let inferred = kinds::infer(&self.source)?;
            self.fs_type = inferred.fs_type.into();
            self.inferred = Some(inferred);
            if self.fs_type == AUTO && self.options.has(MKFS) {
                return Err(Error::usage(format!("bad options: {MKFS} without a type"))
                    .hint("name the file system to make: -t ext4 or -t xfs"));
            }
        }
        (self.fs_type, self.source) = kinds::canonical(self.fs_type, self.source)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        if !self.fs_type.chars().all(plain) || self.fs_type.starts_with(['.', '-']) {
            return Err(Error::usage(format!(
                "bad type: {}",
                self.fs_type.escape_default()
            )));
        }
        if let Some(list) = self.options.value(SERVERS)
            && !list.starts_with('@')
        {
            let listed = servers::parse_list(list)?;
            self.source = kinds::with_servers(&self.fs_type, &self.source, &listed)?;
            self.options = self.options.without(&[SERVERS]);
        }
        Order::from_options(&self.options)?;
        // A helper would parse such a source as an option.
        if self.source.starts_with('-') {
            return Err(Error::usage(format!("bad source: {}", self.source)));
        }
        if self.source.contains('\0') || self.target.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(Error::usage("source or target contains a NUL byte"));
        }
        if self.target.as_os_str().is_empty() {
            return Err(Error::usage("the target is empty"));
        }
        if let Some(operation) = [
            "move",
            "shared",
            "rshared",
            "private",
            "rprivate",
            "slave",
            "rslave",
            "unbindable",
            "runbindable",
        ]
        .iter()
        .find(|o| self.options.has(o))
        {
            return Err(Error::usage(format!(
                "bad option {operation}: spc does not change existing mounts"
            ))
            .hint(format!("on the host, run: mount -o {operation} TARGET")));
        }
        self.mkdir()?;
        RepairScope::from_options(&self.options)?;
        if self.options.has(MKFS) && self.options.read_only() {
            return Err(
                Error::usage(format!("bad options: {MKFS} with a read-only mount"))
                    .hint("mount it writable to make a file system"),
            );
        }
        Ok(self)
    }

    /// Returns the time limit. Without a limit of the user, time in the queue for a helper slot
    /// does not count.
    pub fn limit(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// Returns the mode for missing directories, if spc may create them (`x-mount.mkdir[=MODE]`,
    /// mount(8)).
    ///
    /// # Errors
    /// The mode is not octal.
    pub fn mkdir(&self) -> Result<Option<u32>> {
        for key in ["x-mount.mkdir", "X-mount.mkdir"] {
            if let Some(mode) = self.options.value(key) {
                return match u32::from_str_radix(mode, 8) {
                    Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
                    _ => Err(Error::usage(format!(
                        "bad option {key}: not an octal mode: {mode}"
                    ))),
                };
            }
            if self.options.has(key) {
                return Ok(Some(0o755));
            }
        }
        Ok(None)
    }

    /// Returns a hint with the other types that fit the source, if the type was inferred.
    pub fn type_hint(&self) -> Option<String> {
        let Inferred {
            fs_type,
            alternatives,
        } = self.inferred.as_ref()?;
        (!alternatives.is_empty()).then(|| {
            format!(
                "the type {fs_type} was inferred from the source; for another type, add -t {}",
                alternatives.join(" or -t ")
            )
        })
    }

    /// Returns a text that is equal for requests that mean the same mount, from whichever server.
    pub fn fingerprint(&self) -> String {
        let mut text = format!("{} {} {}", self.fs_type, self.source, self.options.sorted());
        if let Some(csi) = &self.csi {
            text = format!("{text} {csi}");
        }
        match self.options.value(SERVERS) {
            Some(file) => format!("{text} {SERVERS}={file}"),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fs_type: &str, source: &str, options: &str) -> Request {
        Request {
            options: Options::parse([options]).unwrap(),
            ..Request::new(fs_type, source, "/mnt")
        }
    }

    #[test]
    fn invalid_request_is_refused() {
        for (fs_type, source, options) in [
            ("", "a", ""),
            ("../x", "a", ""),
            ("a b", "a", ""),
            ("-x", "a", ""),
            ("tmpfs", "", ""),
            ("tmpfs", "-o", ""),
            ("tmpfs", "a", "move"),
            ("tmpfs", "a", "x-mount.mkdir=9"),
            ("tmpfs", "a", "x-spc.repiar=containers"),
        ] {
            assert!(
                request(fs_type, source, options).validated().is_err(),
                "{fs_type} {source} {options}"
            );
        }
        assert!(
            request("fuse.sshfs", "me@host:/dir", "ro,x-mount.mkdir=0700")
                .validated()
                .is_ok()
        );
    }

    #[test]
    fn missing_type_is_inferred_from_the_source() {
        for fs_type in ["", "auto"] {
            let inferred = request(fs_type, "h:/x", "").validated().unwrap();
            assert_eq!(inferred.fs_type, "nfs");
            assert!(
                inferred
                    .type_hint()
                    .unwrap()
                    .contains("-t glusterfs or -t ceph")
            );
            let named = request("nfs", "h:/x", "").validated().unwrap();
            assert_eq!(named.fingerprint(), inferred.fingerprint());
            assert_eq!(named.type_hint(), None);
        }
        assert!(request("", "x", "").validated().is_err());
        assert!(request("", "x", "remount,ro").validated().is_ok());
        let certain = request("", "//h/s", "").validated().unwrap();
        assert_eq!((&*certain.fs_type, certain.type_hint()), ("cifs", None));
    }

    #[test]
    fn servers_option_adds_to_the_source() {
        let source = |fs_type: &str, source: &str, servers: &str| {
            let options = format!("{SERVERS}=\"{servers}\"");
            Ok::<_, Error>(request(fs_type, source, &options).validated()?.source)
        };
        assert_eq!(source("nfs", "/x", "a,b").unwrap(), "a,b:/x");
        assert_eq!(source("nfs", "a:/x", "b/c").unwrap(), "a,b,c:/x");
        assert_eq!(source("glusterfs", "vol", "a b").unwrap(), "a,b:/vol");
        assert!(source("tmpfs", "x", "a").is_err());
        assert!(source("nfs", "/x", "").is_err());
        let one = request("nfs", "a,b:/x", "").validated().unwrap();
        let other = request("nfs", "/x", "x-spc.servers=a/b,x-spc.order=given");
        assert_eq!(one.fingerprint(), other.validated().unwrap().fingerprint());
        let from_file = |file: &str| {
            let options = format!("{SERVERS}=@{file}");
            request("nfs", "/x", &options).validated().unwrap()
        };
        assert_eq!(from_file("/f").source, "/x");
        assert_ne!(from_file("/f").fingerprint(), from_file("/g").fingerprint());
        assert!(
            request("nfs", "a:/x", "x-spc.order=last")
                .validated()
                .is_err()
        );
    }

    #[test]
    fn spellings_of_fuse_programs_are_one_type() {
        for (fs_type, source, expected) in [
            ("fuse", "s3fs#bucket:/dir", ("fuse.s3fs", "bucket:/dir")),
            ("fuse.s3fs", "bucket", ("fuse.s3fs", "bucket")),
            ("s3fs", "bucket", ("fuse.s3fs", "bucket")),
            ("sshfs", "me@h:", ("fuse.sshfs", "me@h:")),
            ("ceph-fuse", "a:/", ("ceph-fuse", "a:/")),
            ("bindfs", "/a", ("bindfs", "/a")),
        ] {
            let request = request(fs_type, source, "").validated().unwrap();
            assert_eq!((&*request.fs_type, &*request.source), expected);
        }
        assert!(request("fuse", "bucket", "").validated().is_err());
    }

    #[test]
    fn bind_option_selects_the_type() {
        assert_eq!(
            request("", "/a", "bind").validated().unwrap().fs_type,
            "bind"
        );
    }
}
