//! `mount.TYPE` and `umount.TYPE`: what mount(8) and umount(8) run for a type that they do not mount themselves.
//!
//! mount(8) looks for `mount.TYPE` by the whole type and, where that has a dot, by what comes before it, with `-t`. So
//! `mount.fuse` is the helper of every `fuse.PROGRAM`. Types that the kernel mounts are not taken over: `mount.spc` is for
//! `-t spc.ext4`, and for `-t spc`, by the source.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::error::{Error, Result, show};
use crate::frontends::common::{finish, leave_to_client, make, parse, start_log};
use crate::frontends::secret_args::Arguments;
use crate::host::{Settings, namespace};
use crate::mount::Request;
use crate::mount::request::RouteChoice;
use crate::options::Options;
use crate::state::Session;
use crate::unmount;
use crate::unmount::escalate::UnmountMode;
use crate::unmount::foreign::unmount_foreign;

/// Mount SOURCE on TARGET, as mount(8) asks for it
#[derive(Debug, Parser)]
#[command(name = "mount.spc", version, max_term_width = 100)]
pub struct MountHelper {
    /// What to mount
    source: String,
    /// Directory on the host
    target: PathBuf,
    /// Options, separated by commas
    #[arg(short, value_name = "LIST")]
    options: Vec<String>,
    /// The whole type, where the program is called after a part of it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    fs_type: Option<String>,
    /// Tolerate options that the file system does not know, where it can
    #[arg(short)]
    sloppy: bool,
    /// Do everything but the mount
    #[arg(short)]
    fake: bool,
    /// Leave mtab alone, which is done anyway
    #[arg(short)]
    no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Read-only
    #[arg(short)]
    read_only: bool,
    /// Read-write, which is the default
    #[arg(short = 'w')]
    read_write: bool,
    /// The mount namespace to mount in, which must be the host's
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
}

/// Unmount TARGET, as umount(8) asks for it
#[derive(Debug, Parser)]
#[command(name = "umount.spc", version, max_term_width = 100)]
pub struct UmountHelper {
    /// Directory on the host
    target: PathBuf,
    /// Give up on outstanding requests
    #[arg(short)]
    force: bool,
    /// Detach now, clean up when it is no longer busy
    #[arg(short)]
    lazy: bool,
    /// Leave mtab alone, which is done anyway
    #[arg(short)]
    no_mtab: bool,
    /// Where it cannot be unmounted, make it read-only: that is not done
    #[arg(short)]
    read_only: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// The whole type, where the program is called after a part of it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    fs_type: Option<String>,
    /// The mount namespace to unmount in, which must be the host's
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
}

/// `mount.TYPE`, called by this name.
pub fn mount(name: &str, fs_type: &str) -> ExitCode {
    let arguments = Arguments::take();
    let helper: MountHelper = match parse(MountHelper::command(), &arguments) {
        Ok(helper) => helper,
        Err(code) => return code,
    };
    start_log(helper.verbose, &arguments);
    let done = helper
        .request(fs_type)
        .and_then(|request| make(request, helper.fake, helper.verbose));
    finish(name, &arguments, done.map(|()| 0))
}

/// `umount.TYPE`, called by this name.
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
    /// What is asked for by the program of the name `mount.CALLED`.
    ///
    /// # Errors
    /// It is not understood.
    pub fn request(&self, called: &str) -> Result<Request> {
        let lists = self.options.iter().map(String::as_str);
        let (mut options, secrets) = Options::and_secrets(lists)?;
        let (fs_type, source) = whole_type(called, self.fs_type.as_deref(), &self.source)?;
        for (asked, option) in [
            (self.read_only, "ro"),
            (self.read_write, "rw"),
            // The kernel's NFS has it as an option; nobody else has it at all.
            (self.sloppy && fs_type.starts_with("nfs"), "sloppy"),
        ] {
            if asked {
                options.push(option.into())?;
            }
        }
        check_namespace(self.namespace.as_deref())?;
        Request {
            fs_type,
            inferred: None,
            source,
            target: self.target.clone(),
            options,
            secrets,
            timeout: None,
            route: RouteChoice::Auto,
            over_system_directory: false,
            no_symlink_tail: 0,
        }
        .validated()
    }
}

impl UmountHelper {
    fn run(&self) -> Result<()> {
        check_namespace(self.namespace.as_deref())?;
        let session = Session::open()?;
        leave_to_client(&session, Some(&self.target))?;
        let target = unmount::resolve(&session, &self.target)?;
        let how = UnmountMode {
            lazy: self.lazy,
            force: self.force,
        };
        unmount_foreign(&session, &target, how)?;
        if self.verbose {
            println!("{}: unmounted", show(&target));
        }
        Ok(())
    }
}

/// The type and the source that are meant by a program `mount.CALLED`, the `-t` that mount(8) gave it, and the source.
fn whole_type(called: &str, given: Option<&str>, source: &str) -> Result<(String, String)> {
    let whole = match given.and_then(|given| given.strip_prefix(called)) {
        Some(rest) if rest.starts_with('.') => format!("{called}{rest}"),
        _ => called.to_owned(),
    };
    if let Some(inner) = whole.strip_prefix("spc") {
        if inner.is_empty() {
            return Ok((String::new(), source.to_owned()));
        }
        if let Some(inner) = inner.strip_prefix('.') {
            return Ok((inner.to_owned(), source.to_owned()));
        }
    }
    // mount.fuse(8) finds the program in the source.
    if whole == "fuse" || whole == "fuse3" {
        return match source.split_once('#') {
            Some((program, source)) if !program.is_empty() => {
                Ok((format!("fuse.{program}"), source.to_owned()))
            }
            _ => Err(Error::usage(format!("no FUSE program is said for {source}"))
                .hint("say it with the type, as in -t fuse.sshfs, or before the source, as in sshfs#USER@HOST:")),
        };
    }
    Ok((whole, source.to_owned()))
}

/// mount(8) -N has its helpers mount elsewhere than where they run.
fn check_namespace(asked: Option<&Path>) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    let file = |path: &Path| {
        std::fs::metadata(path)
            .map(|file| (file.dev(), file.ino()))
            .map_err(|e| Error::usage(format!("bad -N {}", show(path))).because(e))
    };
    let named = match asked.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(process) => PathBuf::from(format!("/proc/{process}/ns/mnt")),
        None => asked.to_owned(),
    };
    let (host, _) = namespace::find(&Settings::read()?)?;
    if file(&named)? == file(&host)? {
        return Ok(());
    }
    Err(Error::usage(format!(
        "bad -N {}: not the host's mount namespace",
        show(asked)
    ))
    .hint("spc mounts on the host and nowhere else"))
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
    fn arguments_come_as_mount_gives_them() {
        let words = ["h:/x", "/mnt", "-s", "-n", "-v", "-o", "rw,vers=4.1,x-a=b"];
        let asked = request("nfs", &words).unwrap();
        assert_eq!((&*asked.fs_type, &*asked.source), ("nfs", "h:/x"));
        assert_eq!(asked.target, Path::new("/mnt"));
        assert_eq!(
            asked.options.for_file_system().to_string(),
            "vers=4.1,sloppy"
        );
        // By hand and in one word.
        let asked = request("glusterfs", &["-nvoro", "h:/x", "/mnt", "-s"]).unwrap();
        assert_eq!(asked.options.to_string(), "ro");
        for bad in [&["h:/x"][..], &["h:/x", "/mnt", "-z"], &["a", "b", "c"]] {
            let words = [&["mount.x"], bad].concat();
            assert!(MountHelper::try_parse_from(words).is_err(), "{bad:?}");
        }
        UmountHelper::try_parse_from(["umount.x", "/mnt", "-fln", "-r", "-v", "-t", "fuse.x"])
            .unwrap();
    }

    #[test]
    fn the_type_is_the_programs_name_or_what_mount_says_it_is_a_part_of() {
        for (called, given, source, fs_type) in [
            ("nfs", None, "h:/x", "nfs"),
            ("fuse", Some("fuse.sshfs"), "h:", "fuse.sshfs"),
            ("fuse.sshfs", None, "h:", "fuse.sshfs"),
            ("fuse", None, "sshfs#h:", "fuse.sshfs"),
            ("spc", None, "h:/x", ""),
            ("spc", Some("spc.ext4"), "rbd:a/b", "ext4"),
            ("spc.ext4", None, "rbd:a/b", "ext4"),
            ("nfs", Some("cifs"), "h:/x", "nfs"),
            ("spcx", None, "h:/x", "spcx"),
        ] {
            let whole = whole_type(called, given, source).unwrap();
            let source = source.trim_start_matches("sshfs#");
            assert_eq!(whole, (fs_type.into(), source.into()), "{called}");
        }
        for bad in ["h:", "#h:"] {
            assert!(whole_type("fuse", None, bad).is_err());
        }
    }
}
