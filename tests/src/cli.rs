//! The `lab` program: commands for developers, and hidden commands for steps of the lab.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::enter::Enter;
use crate::step::Step;
use crate::{
    Base, Engine, HostOptions, Lab, Propagation, Root, Status, VmOptions, bench, boot, cache,
    cluster, demo, enter, guest, net, packages, prepare, runtime, step, supervisor, times,
};

/// Disposable hosts and real servers for tests.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs the Debian packages that the lab needs
    Setup,
    /// Boots a host and runs a shell in it
    Shell {
        /// Boot a host whose mounts do not propagate
        #[arg(long)]
        private: bool,
        /// Start dockerd first
        #[arg(long)]
        docker: bool,
    },
    /// Boots a virtual machine with the container and runs each line of standard input in it
    Vm {
        /// Use systemd as init
        #[arg(long)]
        systemd: bool,
        /// Use systemd as init, and enforce SELinux's policy
        #[arg(long, conflicts_with = "systemd")]
        selinux: bool,
        /// Start servers on the same network: a GlusterFS cluster with a volume `vol`, Samba with a
        /// share `data`, moto with a bucket
        #[arg(long, value_enum)]
        beside: Vec<Server>,
    },
    /// Measures every row of the table of aims
    Bench(bench::Options),
    /// Mounts a GlusterFS volume on a disposable host and shows each step
    Demo,
    /// Starts a Kubernetes cluster with the CSI drivers, a GlusterFS volume and a pod that uses it,
    /// and runs a shell on its node
    Kubernetes,
    /// Makes what most tests take from the cache
    Prepare,
    /// Prints where the time of a test run went
    Times {
        /// File that SPC_TEST_TIMES named
        file: PathBuf,
    },
    /// Removes everything that the lab keeps in the user's cache directory
    Clean,
    /// Makes a lab, and ends it at the end of standard input
    #[command(hide = true)]
    Supervise,
    /// PID 1 of a lab
    #[command(hide = true)]
    LabInit {
        /// Cgroup to join
        cgroup: PathBuf,
    },
    /// Boots a host inside of a lab
    #[command(hide = true)]
    HostUp {
        /// Parameters of the host, as JSON
        boot: String,
    },
    /// PID 1 of a host
    #[command(hide = true)]
    HostInit {
        /// Parameters of the host, as JSON
        boot: String,
    },
    /// Runs commands in a virtual machine
    #[command(hide = true)]
    Guest,
    /// Seeds the random numbers of a virtual machine
    #[command(hide = true)]
    Reseed,
    /// Lays a cable for a virtual machine
    #[command(hide = true)]
    Tap {
        /// Name of the interface
        cable: String,
    },
    /// Runs a command in the namespaces of a process
    #[command(hide = true)]
    Enter(Enter),
    /// Runs and times commands in the namespaces of a process
    #[command(hide = true)]
    Work(Enter),
    /// Runs a command like `enter`, and stops it at each system call that changes something
    #[command(hide = true)]
    Step(Step),
}

/// Servers of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Server {
    Gluster,
    Samba,
    S3,
}

/// Runs the program.
pub fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next().and_then(|name| runtime::called_as(&name)) {
        runtime::run(name, arguments.collect())?;
    }
    match Cli::parse().command {
        Task::Setup => packages::setup()?,
        Task::Shell { private, docker } => return shell(private, docker),
        Task::Vm {
            systemd,
            selinux,
            beside,
        } => {
            let root = match (systemd, selinux) {
                (_, true) => Root::Selinux,
                (true, _) => Root::Systemd,
                _ => Root::Vm,
            };
            virtual_machine(root, &beside)?;
        }
        Task::Bench(options) => bench::main(&options)?,
        Task::Demo => demo::run()?,
        Task::Kubernetes => return cluster::show::run(),
        Task::Prepare => prepare::prepare()?,
        Task::Times { file } => times::print(&file)?,
        Task::Clean => cache::remove(&cache::directory()?)?,
        Task::Supervise => supervisor::supervise()?,
        Task::LabInit { cgroup } => supervisor::init(&cgroup)?,
        Task::HostUp { boot } => boot::up(&boot)?,
        Task::HostInit { boot } => boot::init(&boot)?,
        Task::Guest => guest::guest()?,
        Task::Reseed => guest::reseed()?,
        Task::Tap { cable } => net::plug(&cable)?,
        Task::Enter(arguments) => return enter::enter(&arguments),
        Task::Work(arguments) => bench::work(&arguments)?,
        Task::Step(arguments) => return step::step(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn shell(private: bool, docker: bool) -> Result<ExitCode> {
    let lab = Lab::start()?;
    let propagation = if private {
        Propagation::Private
    } else {
        Propagation::Shared
    };
    let host = lab.host(HostOptions {
        propagation,
        ..HostOptions::default()
    })?;
    if docker {
        host.start(Engine::Docker, None)?;
    }
    match host.command(&["sh"])?.interactive()? {
        Status::Code(0) => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

fn virtual_machine(root: Root, beside: &[Server]) -> Result<()> {
    let lab = Lab::start()?;
    let wanted = |server: Server| beside.contains(&server);
    let cluster = wanted(Server::Gluster).then(|| lab.gluster()).transpose()?;
    if let Some(cluster) = &cluster {
        cluster.create_volume("vol")?;
        println!("gluster: {}", cluster.nodes()[0].host().address());
    }
    let samba = wanted(Server::Samba).then(|| lab.samba()).transpose()?;
    if let Some(samba) = &samba {
        println!("samba: {}", samba.address());
    }
    let s3 = wanted(Server::S3).then(|| lab.s3()).transpose()?;
    if let Some(s3) = &s3 {
        println!("s3: {} {} {}", s3.open(), s3.guarded(), s3.key());
    }
    let vm = lab.vm(VmOptions {
        root,
        image: Some(Base::Trixie),
        ..VmOptions::default()
    })?;
    vm.start_container()?;
    for line in std::io::stdin().lines() {
        println!("{}", vm.sh(&line?)?);
    }
    Ok(())
}
