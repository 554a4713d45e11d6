//! A disposable host, seen from the test process.

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::boot::Boot;
use crate::cgroup::Cgroup;
use crate::exec::{Process, Run};
use crate::machine::binary;
use crate::mountinfo::{self, Mount};
use crate::outer::Lab;
use crate::output::Output;
use crate::roots::{self, Root};
use crate::{cache, loops, net, times};

pub use crate::boot::Propagation;

/// What kind of host is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOptions {
    /// Whether mounts below `/` propagate.
    pub propagation: Propagation,
    /// What is installed.
    pub root: Root,
}

/// A host: own mount, PID, network, UTS, IPC and cgroup namespaces, own files, own init. Dropping it ends it.
#[derive(Debug)]
pub struct Host<'lab> {
    lab: &'lab Lab,
    number: u8,
    pid: i32,
    init: OwnedFd,
    cgroup: Cgroup,
    runs: AtomicU32,
}

impl<'lab> Host<'lab> {
    pub(crate) fn boot(lab: &'lab Lab, options: HostOptions) -> Result<Self> {
        let lower = roots::path(options.root)?;
        let started = Instant::now();
        let number = lab.take_number()?;
        let cgroup = lab.cgroup.child(&net::name(number))?;
        let booted = Self::boot_in(lab, options, number, &lower, cgroup.clone());
        if booted.is_err() {
            cgroup.remove()?;
            lab.give_back_number(number);
        }
        let host = booted.context("cannot boot a host")?;
        let name = format!("host ({:?})", options.root);
        times::note(name, started.elapsed(), host.cgroup.cpu());
        Ok(host)
    }

    fn boot_in(
        lab: &'lab Lab,
        options: HostOptions,
        number: u8,
        lower: &Path,
        cgroup: Cgroup,
    ) -> Result<Self> {
        let own = cgroup.child("init")?;
        let boot = Boot {
            number,
            propagation: options.propagation,
            cgroup: cgroup.path().to_owned(),
            lower: lower.to_owned(),
            data: cache::mount_point()?,
        };
        let argv = [
            binary()?.into_os_string(),
            "host-up".into(),
            serde_json::to_string(&boot)?.into(),
        ];
        lab.command(lab.cgroup.child(&format!("boot-{number}"))?, &argv)?
            .run()?
            .ok()?;
        let pid = own
            .processes()
            .into_iter()
            .find(|pid| is_init(*pid))
            .context("the host has no init")?;
        let init = Pid::from_raw(pid).context("no init")?;
        let init = pidfd_open(init, PidfdFlags::empty()).context("the host has ended")?;
        Ok(Self {
            lab,
            number,
            pid,
            init,
            cgroup,
            runs: AtomicU32::default(),
        })
    }

    /// The host's name in its own UTS namespace and in messages.
    pub fn name(&self) -> String {
        net::name(self.number)
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        net::address(self.number)
    }

    /// Its PID 1, as the machine numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The lab it is in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// Says what it took to start what runs on it.
    pub(crate) fn say_cost(&self, what: &str, started: Instant) {
        self.cgroup.say_cost(what, started);
    }

    /// Every process of the host, as the machine numbers them.
    pub fn processes(&self) -> Vec<i32> {
        self.cgroup.processes()
    }

    /// The cgroups that there are in the host, those of the lab's commands apart.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.cgroup.below("run-")
    }

    /// A command to be run in the host.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Run> {
        self.command_at(self.pid, argv)
    }

    /// A command to be run in the namespaces of a process of the host, such as a container's.
    pub fn command_at<S: AsRef<OsStr>>(&self, pid: i32, argv: &[S]) -> Result<Run> {
        Run::new(&self.name(), pid, self.next_cgroup()?, argv)
    }

    /// A cgroup for one command.
    pub(crate) fn next_cgroup(&self) -> Result<Cgroup> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.cgroup.child(&format!("run-{run}"))
    }

    /// Runs a command in the host, for a minute at most.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.command(argv)?.run()
    }

    /// Runs a shell script in the host, for a minute at most.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-c", script])
    }

    /// Starts a command in the host.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Process> {
        self.command(argv)?.spawn()
    }

    /// The mount table of the host.
    pub fn mountinfo(&self) -> Result<Vec<Mount>> {
        mountinfo::of_process(self.pid)
    }

    /// Reads a file of the host, as a process of the host sees it.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        Ok(self
            .run(&[
                OsStr::new("cat"),
                OsStr::new("--"),
                path.as_ref().as_os_str(),
            ])?
            .ok()?
            .stdout)
    }

    /// Writes a file of the host; missing directories are made.
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        self.command(&write_argv(path.as_ref()))?
            .input(bytes)?
            .run()?
            .ok()?;
        Ok(())
    }

    /// Copies a file of the machine into the host, with its mode.
    pub fn copy_in(&self, file: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let (file, path) = (file.as_ref(), path.as_ref());
        let source =
            std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
        let mode = source.metadata()?.permissions().mode() & 0o7777;
        self.command(&write_argv(path))?.stdin(source).run()?.ok()?;
        self.run(&[
            OsStr::new("chmod"),
            OsStr::new(&format!("{mode:o}")),
            path.as_os_str(),
        ])?
        .ok()?;
        Ok(())
    }
}

impl Host<'_> {
    /// Its PID namespace ends with its init, and its mount namespace and files with the last process.
    fn end(&self) -> Result<()> {
        let loops = loops::of_processes(&self.processes())?;
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        times::add_cpu(self.cgroup.cpu());
        self.cgroup.remove()?;
        loops::detach(&loops)
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("lab: {} does not end: {error:#}", self.name());
        }
        self.lab.give_back_number(self.number);
    }
}

/// Whether a process is PID 1 of its own namespace.
fn is_init(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
}

/// Writes a file in the host from standard input.
fn write_argv(path: &Path) -> [&OsStr; 5] {
    let script = r#"mkdir -p -- "$(dirname -- "$1")" && cat > "$1""#;
    let [shell, option, script, name] = ["sh", "-c", script, "write"].map(OsStr::new);
    [shell, option, script, name, path.as_os_str()]
}
