//! `mount.TYPE` and `umount.TYPE`, the external helpers of mount(8) and umount(8).
//!
//! mount(8) looks for `mount.TYPE` by the full type. For a type with a dot, it also looks for the
//! part before the dot, and passes the full type with `-t`. So `mount.fuse` is the helper of every
//! `fuse.PROGRAM`.
//!
//! Types that the kernel mounts keep their names. spc mounts them as `mount.spc`: `-t spc.ext4`
//! names the type, and `-t spc` has it inferred from the source.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::error::{Error, Result, show};
use crate::frontends::common::{enter_client_to_unmount, finish, parse, run_mount, start_log};
use crate::frontends::secret_args::Arguments;
use crate::host::{Settings, namespace};
use crate::kinds;
use crate::mount::Request;
use crate::mount::remount::remount;
use crate::options::Options;
use crate::state::Session;
use crate::unmount;
use crate::unmount::escalate::UnmountMode;
use crate::unmount::foreign::unmount_foreign;

/// Mount SOURCE on TARGET, as called by mount(8)
#[derive(Debug, Parser)]
#[command(name = "mount.spc", version, max_term_width = 100)]
pub struct MountHelper {
    /// Source of the mount, in the form that the type's helper expects
    source: String,
    /// Directory on the host
    target: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "LIST")]
    options: Vec<String>,
    /// Full type, if the program's name holds only a part of it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    fs_type: Option<String>,
    /// Tolerate unknown options, if the file system can (NFS)
    #[arg(short)]
    sloppy: bool,
    /// Do everything except the mount itself
    #[arg(short)]
    fake: bool,
    /// Do not write /etc/mtab; spc never does
    #[arg(short)]
    no_mtab: bool,
    /// Print what spc does
    #[arg(short)]
    verbose: bool,
    /// Mount read-only
    #[arg(short)]
    read_only: bool,
    /// Mount read-write, which is the default
    #[arg(short = 'w')]
    read_write: bool,
    /// Mount namespace to mount in, which must be the host's
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
}

/// Unmount TARGET, as called by umount(8)
#[derive(Debug, Parser)]
#[command(name = "umount.spc", version, max_term_width = 100)]
pub struct UmountHelper {
    /// Directory on the host
    target: PathBuf,
    /// Force the unmount: outstanding requests fail
    #[arg(short)]
    force: bool,
    /// Detach the mount now, and clean up once it is no longer busy
    #[arg(short)]
    lazy: bool,
    /// Do not write /etc/mtab; spc never does
    #[arg(short)]
    no_mtab: bool,
    /// Remount read-only what cannot be unmounted
    #[arg(short)]
    read_only: bool,
    /// Print what spc does
    #[arg(short)]
    verbose: bool,
    /// Full type, if the program's name holds only a part of it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    fs_type: Option<String>,
    /// Mount namespace to unmount in, which must be the host's
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
}

/// Runs `mount.TYPE`. `name` is the program's name in messages, `fs_type` the type in it.
pub fn mount(name: &str, fs_type: &str) -> ExitCode {
    let arguments = Arguments::take();
    let helper: MountHelper = match parse(MountHelper::command(), &arguments) {
        Ok(helper) => helper,
        Err(code) => return code,
    };
    start_log(helper.verbose, &arguments);
    let done = helper
        .request(fs_type)
        .and_then(|request| run_mount(request, helper.fake, helper.verbose));
    finish(name, &arguments, done.map(|()| 0))
}

/// Runs `umount.TYPE`. `name` is the program's name in messages.
pub fn umount(name: &str) -> ExitCode {
    let arguments = Arguments::take();
    let helper: UmountHelper = match parse(UmountHelper::command(), &arguments) {
        Ok(helper) => helper,
        Err(code) => return code,
    };
    start_log(helper.verbose, &arguments);
    finish(name, &arguments, helper.run().map(|()| 0))
}

impl MountHelper {
    /// Returns the request of the program `mount.CALLED`.
    ///
    /// # Errors
    /// An argument is invalid, or `-N` names another mount namespace than the host's.
    pub fn request(&self, called: &str) -> Result<Request> {
        let lists = self.options.iter().map(String::as_str);
        let (mut options, secrets) = Options::parse_with_secrets(lists)?;
        let (fs_type, source) = full_type(called, self.fs_type.as_deref(), &self.source)?;
        for (given, option) in [
            (self.read_only, "ro"),
            (self.read_write, "rw"),
            // The kernel's NFS client alone has an option for it.
            (self.sloppy && fs_type.starts_with("nfs"), "sloppy"),
        ] {
            if given {
                options.push(option.into())?;
            }
        }
        check_namespace(self.namespace.as_deref())?;
        Request {
            options,
            secrets,
            ..Request::new(fs_type, source, &self.target)
        }
        .validated()
    }
}

impl UmountHelper {
    fn run(&self) -> Result<()> {
        check_namespace(self.namespace.as_deref())?;
        let session = Session::open()?;
        enter_client_to_unmount(&session, Some(&self.target))?;
        let target = unmount::resolve(&session, &self.target)?;
        let mode = UnmountMode {
            lazy: self.lazy,
            force: self.force,
        };
        if let Err(error) = unmount_foreign(&session, &target, mode) {
            if !self.read_only {
                return Err(error);
            }
            tracing::warn!("{}; remounting it read-only", error.summary());
            return remount(&session, &target, &Options::parse(["ro"])?);
        }
        if self.verbose {
            println!("{}: unmounted", show(&target));
        }
        Ok(())
    }
}

/// Returns type and source for a program `mount.CALLED`, its option `-t`, and its argument SOURCE.
///
/// An empty type is to be inferred from the source.
fn full_type(called: &str, given: Option<&str>, source: &str) -> Result<(String, String)> {
    let full = match given.and_then(|given| given.strip_prefix(called)) {
        Some(rest) if rest.starts_with('.') => format!("{called}{rest}"),
        _ => called.to_owned(),
    };
    if let Some(inner) = full.strip_prefix("spc") {
        if inner.is_empty() {
            return Ok((String::new(), source.to_owned()));
        }
        if let Some(inner) = inner.strip_prefix('.') {
            return Ok((inner.to_owned(), source.to_owned()));
        }
    }
    kinds::canonical(full, source.to_owned())
}

/// Checks that option `-N` (a PID or a namespace file, mount(8)) names the host's mount namespace.
fn check_namespace(given: Option<&Path>) -> Result<()> {
    let Some(given) = given else { return Ok(()) };
    let file = |path: &Path| {
        std::fs::metadata(path)
            .map(|file| (file.dev(), file.ino()))
            .map_err(|e| Error::usage(format!("bad -N {}", show(path))).because(e))
    };
    let named = match given.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        None => given.to_owned(),
    };
    let (host, _) = namespace::find(&Settings::read()?)?;
    if file(&named)? == file(&host)? {
        return Ok(());
    }
    Err(Error::usage(format!(
        "bad -N {}: not the host's mount namespace",
        show(given)
    ))
    .hint("spc mounts only in the host's mount namespace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(called: &str, words: &[&str]) -> Result<Request> {
        let words = [&["mount.x"], words].concat();
        MountHelper::try_parse_from(words)
            .unwrap_or_else(|e| panic!("{e}"))
            .request(called)
    }

    #[test]
    fn arguments_of_mount_are_understood() {
        let words = ["h:/x", "/mnt", "-s", "-n", "-v", "-o", "rw,vers=4.1,x-a=b"];
        let parsed = request("nfs", &words).unwrap();
        assert_eq!((&*parsed.fs_type, &*parsed.source), ("nfs", "h:/x"));
        assert_eq!(parsed.target, Path::new("/mnt"));
        assert_eq!(
            parsed.options.for_file_system().to_string(),
            "vers=4.1,sloppy"
        );
        // Letters joined, and options before the source, as a user may type them.
        let parsed = request("glusterfs", &["-nvoro", "h:/x", "/mnt", "-s"]).unwrap();
        assert_eq!(parsed.options.to_string(), "ro");
        for bad in [&["h:/x"][..], &["h:/x", "/mnt", "-z"], &["a", "b", "c"]] {
            let words = [&["mount.x"], bad].concat();
            assert!(MountHelper::try_parse_from(words).is_err(), "{bad:?}");
        }
        UmountHelper::try_parse_from(["umount.x", "/mnt", "-fln", "-r", "-v", "-t", "fuse.x"])
            .unwrap();
    }

    #[test]
    fn type_is_in_the_program_name_the_option_or_the_source() {
        for (called, given, source, fs_type) in [
            ("nfs", None, "h:/x", "nfs"),
            ("fuse", Some("fuse.sshfs"), "h:", "fuse.sshfs"),
            ("fuse.sshfs", None, "h:", "fuse.sshfs"),
            ("fuse", None, "sshfs#h:", "fuse.sshfs"),
            ("sshfs", None, "h:", "fuse.sshfs"),
            ("spc", None, "h:/x", ""),
            ("spc", Some("spc.ext4"), "rbd:a/b", "ext4"),
            ("spc.ext4", None, "rbd:a/b", "ext4"),
            ("nfs", Some("cifs"), "h:/x", "nfs"),
            ("spcx", None, "h:/x", "spcx"),
        ] {
            let full = full_type(called, given, source).unwrap();
            let source = source.trim_start_matches("sshfs#");
            assert_eq!(full, (fs_type.into(), source.into()), "{called}");
        }
        for bad in ["h:", "#h:"] {
            assert!(full_type("fuse", None, bad).is_err());
        }
    }
}
