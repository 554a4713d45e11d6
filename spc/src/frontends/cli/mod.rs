//! Command line: `spc COMMAND`.

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
use crate::daemon::{health_check, http, serve};
use crate::doctor::{self, check::check};
use crate::error::{Class, Error, Result};
use crate::frontends::cli::install::{InstallArgs, UninstallArgs};
use crate::frontends::cli::umount::UmountArgs;
use crate::frontends::common::{enter_client_on_host, finish, parse, run_mount, warn_if_visible};
use crate::frontends::csi::controller::ControllerArgs;
use crate::frontends::csi::{self, CsiArgs};
use crate::frontends::kubelet::{flexvolume, mounter};
use crate::frontends::secret_args::Arguments;
use crate::helper::sandbox;
use crate::host::{Host, Settings, cgroup};
use crate::kinds::needs;
use crate::kinds::servers::SERVERS;
use crate::liveness::{path, probe};
use crate::log::{self, LogMode};
use crate::mount::failover::ServerChoice;
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Request};
use crate::options::Options;
use crate::process::interrupts::Interrupts;
use crate::recovery::{client_upkeep, ended_pods};
use crate::repair::{self, NOTHING, Outcome};
use crate::state::Session;
use crate::unmount::escalate::{self, UnmountStep};
use crate::unmount::holders;

/// Mount network file systems on a host that ships no client for them
///
/// The client programs run in a super-privileged container; the mount appears on the host.
#[derive(Debug, Parser)]
#[command(name = "spc", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount SOURCE on the host directory TARGET
    #[command(after_help = EXIT_STATUS)]
    Mount(MountArgs),
    /// Unmount mounts made by spc
    #[command(visible_alias = "unmount", after_help = EXIT_STATUS)]
    Umount(UmountArgs),
    /// List the mounts made by spc, and their states
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Keep running: redraw the list on a terminal; elsewhere print it after each change, with
        /// --json on one line
        #[arg(short, long)]
        watch: bool,
    },
    /// Check whether container and host have what spc needs
    Doctor {
        /// Also check what this kind needs: glusterfs, nfs, ceph, cifs, fuse.PROGRAM, rbd, iscsi, …
        #[arg(short, long, value_name = "KIND")]
        kind: Vec<String>,
        /// Check only whether the `spc serve` whose --metrics is ADDRESS is healthy
        #[arg(long, value_name = "ADDRESS", conflicts_with = "kind")]
        serve: Option<http::Address>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how a mount would be made, without changing anything
    Explain {
        #[command(flatten)]
        mount: MountArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run as the container's first process: watch and repair mounts, log, reap processes
    Serve {
        /// Log every decision of the shim
        #[arg(short, long)]
        verbose: bool,
        /// Serve metrics for Prometheus, and /healthz, at unix:PATH on the host or at
        /// 127.0.0.1:PORT; may be given more than once
        #[arg(long, value_name = "ADDRESS")]
        metrics: Vec<http::Address>,
        #[command(flatten)]
        csi: CsiArgs,
        #[command(flatten)]
        controller: ControllerArgs,
    },
    /// Do one call of CSI, which standard input describes, and print its result
    #[command(hide = true)]
    CsiWork,
    /// Install on the host the programs that mount(8), systemd and kubelet look for
    Install(InstallArgs),
    /// Remove from the host what `spc install` installed
    Uninstall(UninstallArgs),
    /// Act as kubelet's mounter program (--experimental-mounter-path)
    Mounter(mounter::Mounter),
    /// Act as a FlexVolume driver: answer one call of kubelet with JSON
    Flexvolume(flexvolume::Flexvolume),
    #[command(flatten)]
    Pages(man::ManRequest),
    /// Probe the NUL-terminated targets on standard input, and print the state of each
    #[command(name = "look", hide = true)]
    Probe {
        /// Limit for one probe
        milliseconds: u64,
    },
    /// Walk the path to a target, and print the result
    #[command(hide = true)]
    Reach {
        /// Limit for the walk
        milliseconds: u64,
        /// Target, as a path of the host
        target: PathBuf,
    },
    /// Try one step to unmount one mount, and print its result
    #[command(name = "detach", hide = true)]
    UnmountStep {
        /// Target, as a path of the host
        target: PathBuf,
        /// Mount id
        id: u64,
        /// Mount id that the kernel never reuses
        unique: u64,
        /// Kind of unmount
        #[arg(value_enum)]
        step: UnmountStep,
    },
    /// Search for what keeps a mount busy, and print each finding
    #[command(hide = true)]
    Holders {
        /// Mount id
        id: u64,
        /// Mount id that the kernel never reuses
        unique: u64,
    },
    /// Replace a mount whose daemon died
    #[command(hide = true)]
    Repair {
        /// Target, as recorded
        target: PathBuf,
    },
    /// Stop the daemons of volumes that do not respond and whose pods have ended
    #[command(hide = true)]
    ReleasePods,
    /// Create the mount namespace of a client root file system, and become its holder
    #[command(name = "keep", hide = true)]
    CreateNamespace {
        /// Name of the client root file system
        root: String,
    },
    /// Hold the mount namespace that this process is in
    #[command(name = "keeper", hide = true)]
    HoldNamespace {
        /// Name of the client root file system, shown in lists of processes
        root: String,
    },
    /// Stop unused services, and detach unused disks, in the client namespace of this process
    #[command(name = "tend", hide = true)]
    MaintainClient,
    /// Move a process into a cgroup
    #[command(name = "adopt", hide = true)]
    MoveToCgroup {
        /// Process id
        pid: i32,
        /// Name of the cgroup; without it, the cgroup of this process
        name: Option<String>,
    },
    /// Run a helper and its daemon in a sandbox
    #[command(hide = true)]
    Sandbox {
        /// Descriptor for the exit code; without it, this process starts the one that has it
        #[arg(long)]
        status: Option<i32>,
        /// Description of the sandbox
        description: String,
        /// Program and arguments
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Print the position of the first byte on standard input, a device, that is not zero
    #[command(hide = true)]
    FirstData,
}

impl Command {
    /// Whether the command enters the client root file system before it starts, if it was called on
    /// the host itself.
    fn needs_client(&self) -> bool {
        match self {
            // The type of the mount decides later.
            Self::Mount(_) | Self::Umount(_) => false,
            // The process that kubelet waits for only passes on the reply of its worker.
            Self::Flexvolume(call) => call.is_worker(),
            // Removes the client root file systems.
            Self::Uninstall(_) => false,
            // Another `spc` starts these on the host on purpose.
            Self::CreateNamespace { .. } | Self::MoveToCgroup { .. } | Self::Sandbox { .. } => {
                false
            }
            // Prints texts of this program.
            Self::Pages(_) => false,
            Self::Ls { .. }
            | Self::Doctor { .. }
            | Self::Explain { .. }
            | Self::Serve { .. }
            | Self::Install(_)
            | Self::Mounter(_)
            | Self::Probe { .. }
            | Self::Reach { .. }
            | Self::UnmountStep { .. }
            | Self::Holders { .. }
            | Self::CsiWork
            | Self::Repair { .. }
            | Self::ReleasePods
            | Self::HoldNamespace { .. }
            | Self::MaintainClient
            | Self::FirstData => true,
        }
    }
}

const EXIT_STATUS: &str = "Exit status, as in mount(8): 0 success, 1 usage, 2 system, 8 interrupted, 32 failure, 64 some succeeded";

#[derive(Debug, Args)]
struct MountArgs {
    /// File system type: glusterfs, nfs, ceph, cifs, fuse.PROGRAM, tmpfs, overlay, ext4, xfs, or
    /// any type with a program mount.TYPE in the container; without it, HOST:/PATH is nfs,
    /// //HOST/SHARE is cifs, USER@HOST:DIR is fuse.sshfs
    #[arg(short = 't', long = "types", value_name = "TYPE", value_parser = man::Types, hide_possible_values = true)]
    fs_type: Option<String>,
    /// Mount options, separated by commas; x-mount.mkdir[=MODE] creates the target
    #[arg(short, long, value_name = "LIST")]
    options: Vec<String>,
    /// Servers in addition to that of SOURCE: A,B,C or @FILE; the first server that answers is
    /// used; SOURCE may be the path alone
    #[arg(long, value_name = "LIST")]
    servers: Option<String>,
    /// Secret such as a password; KEY is the name of the type's option, FROM is file:PATH, env:NAME
    /// or stdin
    #[arg(long, value_name = "KEY=FROM")]
    secret: Vec<String>,
    /// Mount read-only
    #[arg(short, long)]
    read_only: bool,
    /// Mount read-write, which is the default
    #[arg(short = 'w', long, visible_alias = "rw", conflicts_with = "read_only")]
    read_write: bool,
    /// Bind-mount the host directory SOURCE
    #[arg(short = 'B', long)]
    bind: bool,
    /// Do everything except the mount itself
    #[arg(short, long)]
    fake: bool,
    /// Print what spc does
    #[arg(short, long)]
    verbose: bool,
    /// Limit in seconds for the whole mount, time in the queue included; without it, 120 seconds
    /// that start when the mount leaves the queue
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: Option<u64>,
    /// How the mount reaches the host
    #[arg(long, value_enum, default_value = "auto")]
    route: RouteChoice,
    /// Allow system directories such as /etc, /usr and /run as target
    #[arg(long)]
    over_system_directory: bool,
    /// Source of the mount, in the form that the type's helper expects
    source: String,
    /// Directory on the host; /host/DIR is the same as /DIR
    #[arg(value_hint = ValueHint::DirPath)]
    target: PathBuf,
}

impl MountArgs {
    fn request(&self) -> Result<Request> {
        let lists = self.options.iter().map(String::as_str);
        let (mut options, mut secrets) = Options::parse_with_secrets(lists)?;
        for secret in &self.secret {
            secrets.add_reference(secret)?;
        }
        if let Some(servers) = &self.servers {
            if options.value(SERVERS).is_some() {
                return Err(Error::usage(format!(
                    "bad option {SERVERS}: --servers is given as well"
                ))
                .hint("give only one of them"));
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
        let fs_type = self.fs_type.as_deref().unwrap_or_default();
        Request {
            options,
            secrets,
            timeout: self.timeout.map(Duration::from_secs),
            route: self.route,
            over_system_directory: self.over_system_directory,
            ..Request::new(fs_type, self.source.as_str(), &self.target)
        }
        .validated()
    }
}

/// Parses the command line, runs the command, and returns its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    let cli: Cli = match parse(Cli::command(), &arguments) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if cli.command.needs_client()
        && let Err(error) = enter_client_on_host()
    {
        return finish("spc", &arguments, Err(error));
    }
    let verbose = match &cli.command {
        Command::Mount(args) | Command::Explain { mount: args, .. } => args.verbose,
        Command::Umount(args) => args.verbose,
        Command::Serve { verbose, .. } => *verbose,
        _ => false,
    };
    let log_mode = match &cli.command {
        Command::Serve { .. } => LogMode::Service,
        Command::Repair { .. } | Command::ReleasePods | Command::CsiWork => LogMode::ServiceChild,
        _ => LogMode::Command,
    };
    let level = match (verbose, log_mode) {
        (true, _) => tracing::Level::DEBUG,
        (false, LogMode::Service | LogMode::ServiceChild) => tracing::Level::INFO,
        (false, LogMode::Command) => tracing::Level::WARN,
    };
    log::init(level, log_mode);
    warn_if_visible(&arguments);
    let done = run(cli.command);
    finish("spc", &arguments, done)
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Mount(args) => {
            run_mount(args.request()?, args.fake, args.verbose)?;
            Ok(0)
        }
        Command::Umount(args) => args.run(),
        Command::Ls { json, watch: false } => list::list(&Session::open()?, json),
        Command::Ls { json, watch: true } => list::watch(&Session::open()?, json).map(|()| 0),
        Command::Doctor { kind, serve, json } => {
            let kinds = kind.iter().map(|kind| needs::needs(kind));
            let checks = match &serve {
                Some(address) => vec![check("serve", health_check::ask(address))],
                None => doctor::examine(&kinds.collect::<Result<Vec<_>>>()?),
            };
            output::checks(&checks, json)?;
            Ok(if checks.iter().all(|check| check.ok) {
                0
            } else {
                Class::System.exit_code()
            })
        }
        Command::Explain { mount, json } => {
            let request = mount.request()?;
            let interrupts = Interrupts::block()?;
            let settings = Settings::read()?;
            let host = Host::open(settings)?;
            let deadline = Instant::now() + request.limit();
            let mut plan = Plan::new(request, &host)?;
            let choice = ServerChoice::new(&plan, &host, deadline, &interrupts)?;
            if let Some(choice) = &choice {
                choice.select(0, &mut plan, &host)?;
            }
            output::plan(&plan, choice.as_ref(), &host, json)?;
            Ok(0)
        }
        Command::Install(args) => args.run(),
        Command::Uninstall(args) => args.run(),
        Command::Mounter(mounter) => mounter.run().map(|()| 0),
        Command::Flexvolume(call) => Ok(call.run()),
        Command::ReleasePods => ended_pods::release(&Session::open()?).map(|()| 0),
        Command::CreateNamespace { root } => namespace_holder::create_namespace(&root).map(|()| 0),
        Command::HoldNamespace { .. } => namespace_holder::run_holder().map(|()| 0),
        Command::MaintainClient => Ok(if client_upkeep::run_here(&Session::open()?)? {
            0
        } else {
            Class::Some.exit_code()
        }),
        Command::MoveToCgroup { pid, name } => {
            cgroup::move_process(pid, name.as_deref()).map(|()| 0)
        }
        Command::Serve {
            metrics,
            csi,
            controller,
            ..
        } => serve::serve(metrics, || Ok((csi.start()?, controller.start()?))).map(|()| 0),
        Command::CsiWork => Ok(csi::worker_main()),
        Command::Pages(request) => man::run(&request, Cli::command()).map(|()| 0),
        Command::Sandbox {
            status: None,
            description,
            words,
        } => sandbox::inside::start(&description, &words),
        Command::Sandbox {
            status: Some(status),
            description,
            words,
        } => match sandbox::inside::run(status, &description, &words)? {},
        Command::FirstData => output::first_data().map(|()| 0),
        Command::Probe { milliseconds } => {
            probe::child(&Session::open()?, Duration::from_millis(milliseconds)).map(|()| 0)
        }
        Command::Reach {
            milliseconds,
            target,
        } => {
            let limit = Duration::from_millis(milliseconds);
            path::reach(&Session::open()?, &target, limit).map(|()| 0)
        }
        Command::Holders { id, unique } => holders::child(id, unique).map(|()| 0),
        Command::UnmountStep {
            target,
            id,
            unique,
            step,
        } => escalate::child(&Session::open()?, &target, id, unique, step).map(|()| 0),
        Command::Repair { target } => {
            let interrupts = Interrupts::block()?;
            match repair::repair(&Session::open()?, &target, &interrupts)? {
                Outcome::Nothing => Ok(NOTHING),
                Outcome::Repaired => Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_need_client_programs_enter_the_client_root() {
        for (needs_client, words) in [
            (false, &["mount", "h:/x", "/mnt"][..]),
            (false, &["unmount", "--all"]),
            (false, &["uninstall"]),
            (false, &["man", "mount"]),
            (false, &["completions", "bash"]),
            (false, &["flexvolume", "unmount", "/d"]),
            (false, &["flexvolume", "unmount", "--work"]),
            (false, &["keep", "1.2.3-abc"]),
            (false, &["adopt", "1"]),
            (true, &["flexvolume", "--work", "unmount", "/d"]),
            (true, &["ls"]),
            (true, &["explain", "h:/x", "/mnt"]),
            (true, &["install"]),
            (true, &["mounter", "mount", "h:/x", "/mnt"]),
            (true, &["look", "2000"]),
            (true, &["holders", "1", "2"]),
            (true, &["detach", "/mnt", "1", "2", "force"]),
            (true, &["tend"]),
        ] {
            let cli = Cli::try_parse_from([&["spc"], words].concat());
            let cli = cli.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(cli.command.needs_client(), needs_client, "{words:?}");
        }
    }
}
