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

/// Properties of a host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOptions {
    /// Propagation of the mounts below `/`.
    pub propagation: Propagation,
    /// Installed files.
    pub root: Root,
}

/// A host: mount, PID, network, UTS, IPC and cgroup namespaces, files and an init of its own.
/// Dropping it ends the host.
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

    /// Returns the host's name in its UTS namespace and in messages.
    pub fn name(&self) -> String {
        net::name(self.number)
    }

    /// Returns the address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        net::address(self.number)
    }

    /// Returns the host's PID 1, as the machine numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the host's lab.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// Prints the cost of a start on this host.
    pub(crate) fn say_cost(&self, what: &str, started: Instant) {
        self.cgroup.say_cost(what, started);
    }

    /// Returns every process of the host, as the machine numbers them.
    pub fn processes(&self) -> Vec<i32> {
        self.cgroup.processes()
    }

    /// Returns the cgroups in the host, except those of the lab's commands.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.cgroup.below("run-")
    }

    /// Makes a command in the host.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Run> {
        self.command_at(self.pid, argv)
    }

    /// Makes a command in the namespaces of a process of the host, such as a container's.
    pub fn command_at<S: AsRef<OsStr>>(&self, pid: i32, argv: &[S]) -> Result<Run> {
        Run::new(&self.name(), pid, self.next_cgroup()?, argv)
    }

    /// Makes a cgroup for one command.
    pub(crate) fn next_cgroup(&self) -> Result<Cgroup> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.cgroup.child(&format!("run-{run}"))
    }

    /// Runs a command in the host, with a limit of a minute.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.command(argv)?.run()
    }

    /// Runs a shell script in the host, with a limit of a minute.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-c", script])
    }

    /// Starts a command in the host.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Process> {
        self.command(argv)?.spawn()
    }

    /// Returns the mount table of the host.
    pub fn mountinfo(&self) -> Result<Vec<Mount>> {
        mountinfo::of_process(self.pid)
    }

    /// Reads a file of the host, as its processes see it.
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

    /// Writes a file of the host, and makes missing directories.
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
    /// Kills the host's init, which ends its PID namespace. Mount namespace and files end with the
    /// last process.
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

/// Returns whether a process is PID 1 of its PID namespace.
fn is_init(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
}

/// Returns a command that writes standard input to a file.
fn write_argv(path: &Path) -> [&OsStr; 5] {
    let script = r#"mkdir -p -- "$(dirname -- "$1")" && cat > "$1""#;
    let [shell, option, script, name] = ["sh", "-c", script, "write"].map(OsStr::new);
    [shell, option, script, name, path.as_os_str()]
}
