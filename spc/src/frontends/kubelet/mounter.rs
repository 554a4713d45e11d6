//! kubelet's mounter program, set with `--experimental-mounter-path`.
//!
//! kubelet calls `MOUNTER mount [-t TYPE] [-o LIST] [SOURCE] TARGET` in place of mount(8), for types
//! whose helpers a host may lack. spc acts as that program under the name `mounter`, and as
//! `spc mounter`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::error::{Error, Result, show};
use crate::frontends::common::{finish, parse, run_mount, start_log};
use crate::frontends::secret_args::Arguments;
use crate::host::{Host, Settings};
use crate::log;
use crate::mount::Request;
use crate::options::Options;
use crate::volume::paths;

/// Mount as kubelet's mounter program
#[derive(Debug, Parser)]
#[command(name = "mounter", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    mounter: Mounter,
}

/// Arguments of `spc mounter`.
#[derive(Debug, Args)]
pub struct Mounter {
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    /// Mount SOURCE on TARGET, with the arguments of mount(8) that kubelet uses
    Mount(MountArgs),
}

#[derive(Debug, Args)]
struct MountArgs {
    /// File system type; without it, the source determines the type
    #[arg(short = 't', long = "types", value_name = "TYPE")]
    fs_type: Option<String>,
    /// Mount options, separated by commas
    #[arg(short, long, value_name = "LIST")]
    options: Vec<String>,
    /// Mount read-only
    #[arg(short, long)]
    read_only: bool,
    /// Do not write /etc/mtab; spc never does
    #[arg(short, long)]
    no_mtab: bool,
    /// Do not canonicalize paths; spc never does that with TARGET
    #[arg(short = 'c', long)]
    no_canonicalize: bool,
    /// Print what spc does
    #[arg(short, long)]
    verbose: bool,
    /// Source of the mount, then the directory on the host
    #[arg(value_name = "SOURCE TARGET", required = true, num_args = 1..=2)]
    paths: Vec<String>,
}

/// Runs `mounter`.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    let cli: Cli = match parse(Cli::command(), &arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let Call::Mount(mount) = &cli.mounter.call;
    start_log(mount.verbose, &arguments);
    // kubelet shows stderr in the events of the pod.
    finish("spc", &arguments, cli.mounter.run().map(|()| 0))
}

impl Mounter {
    /// Returns the request, and the log file that kubelet names for GlusterFS.
    ///
    /// The file is on the host, below kubelet's directory, so the helper in the container cannot
    /// write it.
    ///
    /// # Errors
    /// An argument is missing or invalid.
    pub fn request(&self) -> Result<(Request, Option<PathBuf>)> {
        let Call::Mount(mount) = &self.call;
        mount.request()
    }

    /// Makes the mount, and writes an error also to the log file that kubelet names.
    ///
    /// # Errors
    /// The mount fails, as with `spc mount`.
    pub fn run(&self) -> Result<()> {
        let Call::Mount(mount) = &self.call;
        let (request, log) = self.request()?;
        // The error appears in an event. The id leads from there to the log.
        let mounted = run_mount(request, false, mount.verbose).map_err(log::with_request);
        mounted.inspect_err(|error| {
            if let Some(log) = log
                && let Err(error) = append(log, error)
            {
                tracing::warn!("{error}");
            }
        })
    }
}

/// Appends an error to the file on the host in which kubelet looks for the log of GlusterFS.
fn append(log: PathBuf, error: &Error) -> Result<()> {
    let host = Host::open(Settings::read()?)?;
    let text = error.all_lines().join("\n") + "\n";
    let fail = Error::system(format!("cannot write {} on the host", show(&log)));
    let written = host.run("writing a log", move || {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .custom_flags(libc::O_NOFOLLOW)
            .mode(0o600)
            .open(log)?;
        file.write_all(text.as_bytes())
    })?;
    written.map_err(|e| fail.because(e))
}

impl MountArgs {
    fn request(&self) -> Result<(Request, Option<PathBuf>)> {
        let [source, target] = self.paths.as_slice() else {
            return Err(Error::usage("no source is given")
                .because("only a target, and spc does not read /etc/fstab")
                .hint("use: mount [-t TYPE] [-o LIST] SOURCE TARGET"));
        };
        let target = PathBuf::from(target);
        paths::check(&target)?;
        let lists = self.options.iter().map(String::as_str);
        let (mut options, secrets) = Options::parse_with_secrets(lists)?;
        if self.read_only {
            options.push("ro".into())?;
        }
        let log = options
            .value("log-file")
            .map(PathBuf::from)
            .filter(|log| paths::kubelet_tail(log) > 0);
        if log.is_some() {
            options = options.without(&["log-file"]);
        }
        let fs_type = self.fs_type.as_deref().unwrap_or_default();
        let request = Request {
            options,
            secrets,
            no_symlink_tail: paths::kubelet_tail(&target),
            // Users who may make pods and endpoints choose the server.
            sandboxed: true,
            ..Request::new(fs_type, source.as_str(), target)
        };
        Ok((request.validated()?, log))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~nfs/data";

    fn request(words: &[&str]) -> Result<Request> {
        let words = [&["mounter"], words].concat();
        let cli = Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{e}"));
        let Call::Mount(mount) = &cli.mounter.call;
        Ok(mount.request()?.0)
    }

    #[test]
    fn arguments_of_kubelet_are_understood() {
        let words = [
            "mount",
            "-t",
            "nfs",
            "-o",
            "hard,nfsvers=4.1,ro",
            "h:/x",
            VOLUME,
        ];
        let parsed = request(&words).unwrap();
        assert_eq!((&*parsed.fs_type, &*parsed.source), ("nfs", "h:/x"));
        assert_eq!(parsed.no_symlink_tail, 5);
        assert!(parsed.options.read_only());
        // kubelet passes secrets among the options.
        let words = [
            "mount",
            "-t",
            "ceph",
            "-o",
            "name=a,secret=hunter2",
            "m:/",
            VOLUME,
        ];
        let parsed = request(&words).unwrap();
        assert!(parsed.secrets.has("secret") && parsed.options.to_string() == "name=a");
        let words = ["mount", "--no-canonicalize", "h:/x", VOLUME];
        assert_eq!(request(&words).unwrap().fs_type, "nfs");
        let error = request(&["mount", "-t", "nfs", VOLUME]).unwrap_err();
        assert!(error.to_string().contains("no source"), "{error}");
        assert!(request(&["mount", "h:/x", "mnt"]).is_err());
    }

    #[test]
    fn log_file_below_the_directory_of_kubelet_is_on_the_host() {
        let log = "/var/lib/kubelet/plugins/kubernetes.io/glusterfs/data/pod-glusterfs.log";
        for (log, hosts) in [(log, true), ("/var/log/glusterfs/x.log", false)] {
            let options = format!("log-file={log},acl");
            let words = [
                "mounter",
                "mount",
                "-t",
                "glusterfs",
                "-o",
                &options,
                "h:v",
                VOLUME,
            ];
            let cli = Cli::try_parse_from(words).unwrap();
            let Call::Mount(mount) = &cli.mounter.call;
            let (request, found) = mount.request().unwrap();
            assert_eq!(found.is_some(), hosts);
            assert_eq!(request.options.value("log-file").is_none(), hosts);
        }
    }

    #[test]
    fn calls_other_than_mount_are_refused() {
        for words in [
            &["mounter"][..],
            &["mounter", "umount", VOLUME],
            &["mounter", "mount"],
        ] {
            assert!(Cli::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
