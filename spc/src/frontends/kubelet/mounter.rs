//! kubelet's mounter: `MOUNTER mount [-t TYPE] [-o LIST] [SOURCE] TARGET` in place of mount(8), for the types that kubelet
//! does not expect a host to have a helper for. As `spc mounter`, or as a file of the name `mounter`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::error::{Error, Result, show};
use crate::frontends::common::{finish, make, parse, start_log};
use crate::frontends::kubelet::paths;
use crate::frontends::secret_args::Arguments;
use crate::host::{Host, Settings};
use crate::log;
use crate::mount::Request;
use crate::mount::request::RouteChoice;
use crate::options::Options;

/// Mount as kubelet's mounter path has it
#[derive(Debug, Parser)]
#[command(name = "mounter", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    mounter: Mounter,
}

/// The call.
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
    /// File system type; without it, by the source
    #[arg(short = 't', long = "types", value_name = "TYPE")]
    fs_type: Option<String>,
    /// Options, separated by commas
    #[arg(short, long, value_name = "LIST")]
    options: Vec<String>,
    /// Read-only
    #[arg(short, long)]
    read_only: bool,
    /// Leave mtab alone, which is done anyway
    #[arg(short, long)]
    no_mtab: bool,
    /// Take the paths as they are, which is done for TARGET anyway
    #[arg(short = 'c', long)]
    no_canonicalize: bool,
    /// Say what is done
    #[arg(short, long)]
    verbose: bool,
    /// What to mount, then the directory on the host
    #[arg(value_name = "SOURCE TARGET", required = true, num_args = 1..=2)]
    paths: Vec<String>,
}

/// Called as `mounter`.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    let cli: Cli = match parse(Cli::command(), &arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let Call::Mount(mount) = &cli.mounter.call;
    start_log(mount.verbose, &arguments);
    // kubelet shows it in the pod's events.
    finish("spc", &arguments, cli.mounter.run().map(|()| 0))
}

impl Mounter {
    /// The request, and the file of the host that kubelet wants GlusterFS to log to, which only the host has.
    ///
    /// # Errors
    /// It is not understood.
    pub fn request(&self) -> Result<(Request, Option<PathBuf>)> {
        let Call::Mount(mount) = &self.call;
        mount.request()
    }

    /// Makes the mount.
    ///
    /// # Errors
    /// As `spc mount`.
    pub fn run(&self) -> Result<()> {
        let Call::Mount(mount) = &self.call;
        let (request, log) = self.request()?;
        // In an event, far from the log, the id leads there.
        let made = make(request, false, mount.verbose).map_err(log::with_id);
        made.inspect_err(|error| {
            if let Some(log) = log
                && let Err(error) = note(log, error)
            {
                tracing::warn!("{error}");
            }
        })
    }
}

/// Appends an error to the file of the host in which kubelet looks for what GlusterFS says about it.
fn note(log: PathBuf, error: &Error) -> Result<()> {
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
                .because("only a target, which this mounter looks up nowhere")
                .hint("say mount [-t TYPE] [-o LIST] SOURCE TARGET"));
        };
        let target = PathBuf::from(target);
        paths::check(&target)?;
        let lists = self.options.iter().map(String::as_str);
        let (mut options, secrets) = Options::and_secrets(lists)?;
        if self.read_only {
            options.push("ro".into())?;
        }
        let log = options
            .value("log-file")
            .map(PathBuf::from)
            .filter(|log| paths::depth(log) > 0);
        if log.is_some() {
            options = options.without(&["log-file"]);
        }
        let request = Request {
            fs_type: self.fs_type.clone().unwrap_or_default(),
            inferred: None,
            source: source.clone(),
            no_symlink_tail: paths::depth(&target),
            target,
            options,
            secrets,
            timeout: None,
            route: RouteChoice::Auto,
            over_system_directory: false,
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
    fn arguments_come_as_kubelet_gives_them() {
        let words = [
            "mount",
            "-t",
            "nfs",
            "-o",
            "hard,nfsvers=4.1,ro",
            "h:/x",
            VOLUME,
        ];
        let asked = request(&words).unwrap();
        assert_eq!((&*asked.fs_type, &*asked.source), ("nfs", "h:/x"));
        assert_eq!(asked.no_symlink_tail, 5);
        assert!(asked.options.read_only());
        // What is sensitive comes among the options.
        let words = [
            "mount",
            "-t",
            "ceph",
            "-o",
            "name=a,secret=hunter2",
            "m:/",
            VOLUME,
        ];
        let asked = request(&words).unwrap();
        assert!(asked.secrets.has("secret") && asked.options.to_string() == "name=a");
        let words = ["mount", "--no-canonicalize", "h:/x", VOLUME];
        assert_eq!(request(&words).unwrap().fs_type, "nfs");
        let error = request(&["mount", "-t", "nfs", VOLUME]).unwrap_err();
        assert!(error.to_string().contains("no source"), "{error}");
        assert!(request(&["mount", "h:/x", "mnt"]).is_err());
    }

    #[test]
    fn a_log_below_kubelets_directory_is_the_hosts() {
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
    fn only_mount_is_a_call() {
        for words in [
            &["mounter"][..],
            &["mounter", "umount", VOLUME],
            &["mounter", "mount"],
        ] {
            assert!(Cli::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
