//! kubelet's mounter: `MOUNTER mount [-t TYPE] [-o LIST] [SOURCE] TARGET` in place of mount(8), for the types that kubelet
//! does not expect a host to have a helper for. As `spc mounter`, or as a file of the name `mounter`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::argv::Arguments;
use super::{finish, kubelet, log, make, parse};
use crate::error::{Error, Result};
use crate::mount::request::{DEFAULT_TIMEOUT, RouteChoice};
use crate::mount::{Options, Request};

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
    log(mount.verbose, &arguments);
    // kubelet shows it in the pod's events.
    finish("spc", &arguments, cli.mounter.run().map(|()| 0))
}

impl Mounter {
    /// Makes the mount.
    ///
    /// # Errors
    /// As `spc mount`.
    pub fn run(&self) -> Result<()> {
        let Call::Mount(mount) = &self.call;
        make(mount.request()?, false, mount.verbose)
    }
}

impl MountArgs {
    fn request(&self) -> Result<Request> {
        let [source, target] = self.paths.as_slice() else {
            return Err(Error::usage("no source is given")
                .because("only a target, which this mounter looks up nowhere")
                .hint("say mount [-t TYPE] [-o LIST] SOURCE TARGET"));
        };
        let target = PathBuf::from(target);
        kubelet::check(&target)?;
        let lists = self.options.iter().map(String::as_str);
        let (mut options, secrets) = Options::and_secrets(lists)?;
        if self.read_only {
            options.push("ro".into())?;
        }
        Request {
            fs_type: self.fs_type.clone().unwrap_or_default(),
            inferred: None,
            source: source.clone(),
            plain_tail: kubelet::depth(&target),
            target,
            options,
            secrets,
            timeout: DEFAULT_TIMEOUT,
            route: RouteChoice::Auto,
            over_system_directory: false,
        }
        .validated()
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
        mount.request()
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
        assert_eq!(asked.plain_tail, 5);
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
