//! What was asked, validated; nothing is looked at yet.

use std::path::PathBuf;
use std::time::Duration;

use crate::block::filesystem::MKFS;
use crate::error::{Error, Result};
use crate::kinds::block::AUTO;
use crate::kinds::servers::{self, SERVERS};
use crate::kinds::{self, Inferred};
use crate::options::repair_scope::RepairScope;
use crate::options::{Options, Secrets};
use crate::servers::order::Order;

/// How long a mount may take when nobody says.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// How a mount gets to the host, as the user may insist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RouteChoice {
    /// By what the helper is.
    #[default]
    Auto,
    /// The shim carries the helper's own call.
    Preload,
    /// The helper mounts in the container, and the finished mount is moved.
    Graft,
}

/// A mount that somebody wants.
#[derive(Debug)]
pub struct Request {
    /// File system type, as `mount -t` has it.
    pub fs_type: String,
    /// If nobody said the type: what the source told.
    pub inferred: Option<Inferred>,
    /// What to mount.
    pub source: String,
    /// Where, as the user wrote it.
    pub target: PathBuf,
    /// Mount options.
    pub options: Options,
    /// Secrets, which do not count when requests are compared.
    pub secrets: Secrets,
    /// Limit for the whole mount, if somebody set one.
    pub timeout: Option<Duration>,
    /// Preload, graft, or whichever fits.
    pub route: RouteChoice,
    /// Mount over `/etc`, `/usr` and their like.
    pub over_system_directory: bool,
    /// How many of the target's last parts must not be symbolic links, whoever made them.
    pub no_symlink_tail: usize,
}

impl Request {
    /// Checks what can be checked without looking at anything.
    ///
    /// # Errors
    /// Type, source or target is missing or cannot be one.
    pub fn validated(mut self) -> Result<Self> {
        if self.options.has("bind") || self.options.has("rbind") {
            self.fs_type = "bind".into();
        }
        if self.source.is_empty() {
            return Err(Error::usage("the source is empty"));
        }
        if self.fs_type.is_empty() || self.fs_type == "auto" {
            let inferred = kinds::infer(&self.source)?;
            self.fs_type = inferred.fs_type.into();
            self.inferred = Some(inferred);
            if self.fs_type == AUTO && self.options.has(MKFS) {
                return Err(Error::usage(format!("bad options: {MKFS} without a type"))
                    .hint("say which file system is to be made: -t ext4 or -t xfs"));
            }
        }
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
            let more = servers::list_of(list)?;
            self.source = kinds::with_servers(&self.fs_type, &self.source, &more)?;
            self.options = self.options.without(&[SERVERS]);
        }
        Order::from_options(&self.options)?;
        // A helper would take it for an option.
        if self.source.starts_with('-') {
            return Err(Error::usage(format!("bad source: {}", self.source)));
        }
        if self.source.contains('\0') || self.target.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(Error::usage("source or target holds a NUL byte"));
        }
        if self.target.as_os_str().is_empty() {
            return Err(Error::usage("the target is empty"));
        }
        if let Some(operation) = [
            "remount",
            "move",
            "shared",
            "private",
            "slave",
            "unbindable",
        ]
        .iter()
        .find(|o| self.options.has(o))
        {
            return Err(Error::usage(format!(
                "bad option {operation}: spc makes mounts, it does not change them"
            ))
            .hint(format!("on the host, run: mount -o {operation} TARGET")));
        }
        self.mkdir()?;
        RepairScope::from_options(&self.options)?;
        if self.options.has(MKFS) && self.options.read_only() {
            return Err(
                Error::usage(format!("bad options: {MKFS} with a read-only mount"))
                    .hint("a file system is made only for a mount that may write"),
            );
        }
        Ok(self)
    }

    /// How long it may take, not counting what it waits for its turn where nobody set a limit.
    pub fn limit(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// Mode for missing directories, if they may be made (`x-mount.mkdir[=MODE]`, mount(8)).
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

    /// What else the source may be, where the type was inferred: for whoever meant that.
    pub fn doubt(&self) -> Option<String> {
        let Inferred { fs_type, others } = self.inferred.as_ref()?;
        (!others.is_empty()).then(|| {
            format!(
                "the type {fs_type} was inferred from the source: if it is another, add -t {}",
                others.join(" or -t ")
            )
        })
    }

    /// Equal for requests that mean the same mount, whichever server makes it.
    pub fn fingerprint(&self) -> String {
        let asked = format!("{} {} {}", self.fs_type, self.source, self.options.sorted());
        match self.options.value(SERVERS) {
            Some(file) => format!("{asked} {SERVERS}={file}"),
            None => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fs_type: &str, source: &str, options: &str) -> Request {
        Request {
            fs_type: fs_type.into(),
            inferred: None,
            source: source.into(),
            target: "/mnt".into(),
            options: Options::parse([options]).unwrap(),
            secrets: Secrets::default(),
            timeout: None,
            route: RouteChoice::Auto,
            over_system_directory: false,
            no_symlink_tail: 0,
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (fs_type, source, options) in [
            ("", "a", ""),
            ("../x", "a", ""),
            ("a b", "a", ""),
            ("-x", "a", ""),
            ("tmpfs", "", ""),
            ("tmpfs", "-o", ""),
            ("tmpfs", "a", "remount"),
            ("tmpfs", "a", "x-mount.mkdir=9"),
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
    fn the_type_may_be_left_to_the_source() {
        for fs_type in ["", "auto"] {
            let inferred = request(fs_type, "h:/x", "").validated().unwrap();
            assert_eq!(inferred.fs_type, "nfs");
            assert!(
                inferred
                    .doubt()
                    .unwrap()
                    .contains("-t glusterfs or -t ceph")
            );
            let said = request("nfs", "h:/x", "").validated().unwrap();
            assert_eq!(said.fingerprint(), inferred.fingerprint());
            assert_eq!(said.doubt(), None);
        }
        let certain = request("", "//h/s", "").validated().unwrap();
        assert_eq!((&*certain.fs_type, certain.doubt()), ("cifs", None));
    }

    #[test]
    fn servers_may_be_named_apart_from_the_source() {
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
        let filed = |file: &str| {
            let options = format!("{SERVERS}=@{file}");
            request("nfs", "/x", &options).validated().unwrap()
        };
        assert_eq!(filed("/f").source, "/x");
        assert_ne!(filed("/f").fingerprint(), filed("/g").fingerprint());
        assert!(
            request("nfs", "a:/x", "x-spc.order=last")
                .validated()
                .is_err()
        );
    }

    #[test]
    fn bind_is_an_option_as_in_mount() {
        assert_eq!(
            request("", "/a", "bind").validated().unwrap().fs_type,
            "bind"
        );
    }
}
