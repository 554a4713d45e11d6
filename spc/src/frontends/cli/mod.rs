//! The command line.

pub mod doctor;
pub mod install;
pub mod list;
pub mod man;
pub mod output;
pub mod umount;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::ValueHint;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::client::namespace_holder;
use crate::daemon::{http, serve};
use crate::error::{Class, Error, Result};
use crate::frontends::cli::install::{InstallArgs, UninstallArgs};
use crate::frontends::cli::umount::UmountArgs;
use crate::frontends::common::{finish, make, parse, warn_if_seen};
use crate::frontends::kubelet::{flexvolume, mounter};
use crate::frontends::secret_args::Arguments;
use crate::host::{Host, Settings, cgroup};
use crate::kinds::needs;
use crate::kinds::servers::SERVERS;
use crate::liveness::{path, probe};
use crate::log::{self, Voice};
use crate::mount::failover::ServerChoice;
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Request};
use crate::options::Options;
use crate::process::interrupts::Interrupts;
use crate::recovery::client_upkeep;
use crate::repair::{self, NOTHING, Outcome};
use crate::state::Session;
use crate::unmount::escalate::{self, UnmountStep};

/// Mounts network file systems on a host that ships no client for them.
///
/// Runs in a super-privileged container that has the clients; the mount appears on the host.
#[derive(Debug, Parser)]
#[command(name = "spc", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount SOURCE on the host's TARGET
    #[command(after_help = EXIT_STATUS)]
    Mount(MountArgs),
    /// Unmount what `spc mount` mounted
    #[command(visible_alias = "unmount", after_help = EXIT_STATUS)]
    Umount(UmountArgs),
    /// List what is mounted, and whether it answers
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Go on: draw it anew on a terminal, otherwise print it again when it has changed, with --json on one line
        #[arg(short, long)]
        watch: bool,
    },
    /// Check whether this container can do its job
    Doctor {
        /// Look at what this kind needs as well: glusterfs, nfs, ceph, cifs, fuse.PROGRAM, rbd, iscsi, …
        #[arg(short, long, value_name = "KIND")]
        kind: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how a mount would be made, and change nothing
    Explain {
        #[command(flatten)]
        mount: MountArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Reap, watch the host's mounts, and log; the container's first process
    Serve {
        /// Log every decision of the shim
        #[arg(short, long)]
        verbose: bool,
        /// Show metrics to Prometheus, and /healthz, at unix:PATH on the host or at 127.0.0.1:PORT
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<http::Address>,
    },
    /// Put what mount(8), systemd and kubelet look for on the host
    Install(InstallArgs),
    /// Take it off the host again
    Uninstall(UninstallArgs),
    /// Mount as the program does that kubelet may be told to mount by (--experimental-mounter-path)
    Mounter(mounter::Mounter),
    /// Answer one call of kubelet as a FlexVolume driver does, with JSON
    Flexvolume(flexvolume::Flexvolume),
    #[command(flatten)]
    Pages(man::ManRequest),
    /// Look at the targets on standard input, each ended by a NUL, and say what each shows
    #[command(hide = true)]
    Look {
        /// How long one look may take
        milliseconds: u64,
    },
    /// Walk to a target, and say when that is done
    #[command(hide = true)]
    Reach {
        /// How long that may take
        milliseconds: u64,
        /// The target, as a path of the host
        target: PathBuf,
    },
    /// Unmount one mount, and say what came of it
    #[command(hide = true)]
    Detach {
        /// Where it is, as a path of the host
        target: PathBuf,
        /// Its id
        id: u64,
        /// Its id that is never used again
        unique: u64,
        /// How
        #[arg(value_enum)]
        rung: UnmountStep,
    },
    /// Make a mount anew if its daemon died
    #[command(hide = true)]
    Repair {
        /// The target, as the ledger has it
        target: PathBuf,
    },
    /// Make the namespace of a client root and become its keeper
    #[command(hide = true)]
    Keep {
        /// The client root
        root: String,
    },
    /// Keep the namespace that this process is in
    #[command(hide = true)]
    Keeper {
        /// The client root, for who lists processes
        root: String,
    },
    /// Look after what the client namespace has besides daemons
    #[command(hide = true)]
    Tend,
    /// Move a process into a cgroup
    #[command(hide = true)]
    Adopt {
        /// The process
        pid: i32,
        /// The cgroup; without it, the one this process is in
        name: Option<String>,
    },
    /// Say where on standard input, a device, the first byte is that is not zero
    #[command(hide = true)]
    FirstData,
}

const EXIT_STATUS: &str = "Exit status, as of mount(8): 0 success, 1 usage, 2 system, 8 interrupted, 32 failure, 64 some succeeded";

#[derive(Debug, Args)]
struct MountArgs {
    /// File system type: glusterfs, nfs, ceph, cifs, fuse.PROGRAM, tmpfs, overlay, ext4, xfs, or one with a mount.TYPE in the
    /// container; without it, HOST:/PATH is nfs, //HOST/SHARE cifs, USER@HOST:DIR fuse.sshfs
    #[arg(short = 't', long = "types", value_name = "TYPE", value_parser = man::Types, hide_possible_values = true)]
    fs_type: Option<String>,
    /// Options, separated by commas; x-mount.mkdir[=MODE] makes the target
    #[arg(short, long, value_name = "LIST")]
    options: Vec<String>,
    /// Servers beside that of SOURCE, which may be the path alone: A,B,C or @FILE; the first that answers is used
    #[arg(long, value_name = "LIST")]
    servers: Option<String>,
    /// A secret such as a password: file:PATH, env:NAME or stdin; KEY as the type's option is called
    #[arg(long, value_name = "KEY=FROM")]
    secret: Vec<String>,
    /// Read-only
    #[arg(short, long)]
    read_only: bool,
    /// Read-write, which is the default
    #[arg(short = 'w', long, visible_alias = "rw", conflicts_with = "read_only")]
    read_write: bool,
    /// Bind the host's directory SOURCE
    #[arg(short = 'B', long)]
    bind: bool,
    /// Do everything but the mount
    #[arg(short, long)]
    fake: bool,
    /// Say what is done
    #[arg(short, long)]
    verbose: bool,
    /// Limit for the whole mount in seconds; without it, 120 and what it waits for its turn among other helpers
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: Option<u64>,
    /// How the mount gets to the host
    #[arg(long, value_enum, default_value = "auto")]
    route: RouteChoice,
    /// Mount over /etc, /usr, /run and their like
    #[arg(long)]
    over_system_directory: bool,
    /// What to mount, as the type's helper wants it
    source: String,
    /// Directory on the host; /host/DIR means the same
    #[arg(value_hint = ValueHint::DirPath)]
    target: PathBuf,
}

impl MountArgs {
    fn request(&self) -> Result<Request> {
        let lists = self.options.iter().map(String::as_str);
        let (mut options, mut secrets) = Options::and_secrets(lists)?;
        for secret in &self.secret {
            secrets.name(secret)?;
        }
        if let Some(servers) = &self.servers {
            if options.value(SERVERS).is_some() {
                return Err(Error::usage(format!(
                    "bad option {SERVERS}: --servers is given as well"
                ))
                .hint("give one of them"));
            }
            options.push(format!("{SERVERS}={servers}"))?;
        }
        if self.bind {
            options.push("bind".into())?;
        }
        if self.read_only {
            options.push("ro".into())?;
        }
        if self.read_write {
            options.push("rw".into())?;
        }
        Request {
            fs_type: self.fs_type.clone().unwrap_or_default(),
            inferred: None,
            source: self.source.clone(),
            target: self.target.clone(),
            options,
            secrets,
            timeout: self.timeout.map(Duration::from_secs),
            route: self.route,
            over_system_directory: self.over_system_directory,
            no_symlink_tail: 0,
        }
        .validated()
    }
}

/// Reads the command line, runs the command, and gives its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    let cli: Cli = match parse(Cli::command(), &arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let verbose = match &cli.command {
        Command::Mount(args) | Command::Explain { mount: args, .. } => args.verbose,
        Command::Umount(args) => args.verbose,
        Command::Serve { verbose, .. } => *verbose,
        _ => false,
    };
    let voice = match &cli.command {
        Command::Serve { .. } => Voice::Service,
        Command::Repair { .. } => Voice::OfService,
        _ => Voice::Command,
    };
    let level = match (verbose, voice) {
        (true, _) => tracing::Level::DEBUG,
        (false, Voice::Service | Voice::OfService) => tracing::Level::INFO,
        (false, Voice::Command) => tracing::Level::WARN,
    };
    log::begin(level, voice);
    warn_if_seen(&arguments);
    let done = run(cli.command);
    finish("spc", &arguments, done)
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Mount(args) => {
            make(args.request()?, args.fake, args.verbose)?;
            Ok(0)
        }
        Command::Umount(args) => args.run(),
        Command::Ls { json, watch: false } => list::list(&Session::open()?, json),
        Command::Ls { json, watch: true } => list::watch(&Session::open()?, json).map(|()| 0),
        Command::Doctor { kind, json } => {
            let kinds = kind.iter().map(|kind| needs::needs(kind));
            let checks = doctor::examine(&kinds.collect::<Result<Vec<_>>>()?);
            output::checks(&checks, json)?;
            Ok(if checks.iter().all(|check| check.ok) {
                0
            } else {
                Class::System.exit_code()
            })
        }
        Command::Explain { mount, json } => {
            let request = mount.request()?;
            let interrupts = Interrupts::hold()?;
            let settings = Settings::read()?;
            let host = Host::open(settings)?;
            let deadline = Instant::now() + request.limit();
            let mut plan = Plan::make(request, &host)?;
            let choice = ServerChoice::new(&plan, &host, deadline, &interrupts)?;
            if let Some(choice) = &choice {
                choice.lead(0, &mut plan, &host)?;
            }
            output::plan(&plan, choice.as_ref(), &host, json)?;
            Ok(0)
        }
        Command::Install(args) => args.run(),
        Command::Uninstall(args) => args.run(),
        Command::Mounter(mounter) => mounter.run().map(|()| 0),
        Command::Flexvolume(call) => Ok(call.run()),
        Command::Keep { root } => namespace_holder::hold(&root).map(|()| 0),
        Command::Keeper { .. } => namespace_holder::keeper().map(|()| 0),
        Command::Tend => Ok(if client_upkeep::here(&Session::open()?)? {
            0
        } else {
            Class::Some.exit_code()
        }),
        Command::Adopt { pid, name } => cgroup::move_here(pid, name.as_deref()).map(|()| 0),
        Command::Serve { metrics, .. } => serve::serve(metrics).map(|()| 0),
        Command::Pages(ask) => man::answer(&ask, Cli::command()).map(|()| 0),
        Command::FirstData => output::first_data().map(|()| 0),
        Command::Look { milliseconds } => {
            probe::child(&Session::open()?, Duration::from_millis(milliseconds)).map(|()| 0)
        }
        Command::Reach {
            milliseconds,
            target,
        } => {
            let limit = Duration::from_millis(milliseconds);
            path::reach(&Session::open()?, &target, limit).map(|()| 0)
        }
        Command::Detach {
            target,
            id,
            unique,
            rung,
        } => escalate::child(&Session::open()?, &target, id, unique, rung).map(|()| 0),
        Command::Repair { target } => {
            let interrupts = Interrupts::hold()?;
            match repair::repair(&Session::open()?, &target, &interrupts)? {
                Outcome::Nothing => Ok(NOTHING),
                Outcome::Repaired => Ok(0),
            }
        }
    }
}
