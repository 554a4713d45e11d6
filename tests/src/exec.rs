//! Commands in a host: limited in time, with captured output, and errors that show all of it.

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::machine::binary;
use crate::output::{Output, Status};

/// Default `PATH` in a host.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Default time limit of a command.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A command to run in a host.
#[derive(Debug)]
pub struct Run {
    command: Command,
    title: String,
    cgroup: Cgroup,
    limit: Duration,
}

impl Run {
    /// Makes a command in the namespaces of `pid`, in a cgroup of its own.
    pub(crate) fn new<S: AsRef<OsStr>>(
        host: &str,
        pid: i32,
        cgroup: Cgroup,
        argv: &[S],
    ) -> Result<Self> {
        Self::task(&["enter"], host, pid, cgroup, argv)
    }

    /// Makes a command that another task of the `lab` program than `enter` runs.
    pub(crate) fn task<S: AsRef<OsStr>>(
        task: &[&str],
        host: &str,
        pid: i32,
        cgroup: Cgroup,
        argv: &[S],
    ) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command
            .args(task)
            .arg(pid.to_string())
            .arg(cgroup.path())
            .arg("--")
            .args(argv);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let words: Vec<_> = argv
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        Ok(Self {
            command,
            title: format!("{host}: {}", words.join(" ")),
            cgroup,
            limit: LIMIT,
        })
    }

    /// Sets an environment variable. PATH, HOME and LANG are set already.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets standard input, by default `/dev/null`.
    pub fn stdin(mut self, file: impl Into<Stdio>) -> Self {
        self.command.stdin(file);
        self
    }

    /// Sets these bytes as standard input.
    pub fn input(self, bytes: &[u8]) -> Result<Self> {
        use std::io::{Seek, Write};
        let fd = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        file.rewind()?;
        Ok(self.stdin(file))
    }

    /// Sets the time limit, by default a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the command.
    pub fn spawn(mut self) -> Result<Process> {
        let started = Instant::now();
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {}", self.title))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let streams = [Stream::new(stdout.into())?, Stream::new(stderr.into())?];
        let Self {
            title,
            cgroup,
            limit,
            ..
        } = self;
        Ok(Process {
            child,
            streams,
            title,
            cgroup,
            limit,
            started,
            reaped: false,
        })
    }

    /// Runs the command on this process's own terminal, without a limit.
    pub(crate) fn interactive(mut self) -> Result<Status> {
        self.command
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit());
        Ok(self
            .command
            .status()
            .with_context(|| format!("cannot start {}", self.title))?
            .into())
    }

    /// Starts the command with pipes for all three streams, without a limit. Removing its cgroup
    /// ends it.
    pub(crate) fn with_pipes(mut self) -> Result<Child> {
        let child = self.command.stdin(Stdio::piped()).spawn();
        child.with_context(|| format!("cannot start {}", self.title))
    }

    /// Runs the command and waits for its end.
    pub fn run(self) -> Result<Output> {
        self.spawn()?.wait()
    }
}

/// A running command in a host. Dropping it kills the command and all its descendants.
#[derive(Debug)]
pub struct Process {
    child: Child,
    streams: [Stream; 2],
    title: String,
    cgroup: Cgroup,
    limit: Duration,
    started: Instant,
    reaped: bool,
}

impl Process {
    /// Returns the PID of the command, as the machine numbers it.
    pub fn pid(&self) -> Result<i32> {
        let enter = self.child.id();
        let path = format!("/proc/{enter}/task/{enter}/children");
        loop {
            let children = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = children.split_whitespace().next() {
                return pid.parse().context("bad list of children");
            }
            ensure!(
                self.started.elapsed() < self.limit,
                "never started: {}",
                self.title
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a signal to the command.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()?).context("no process")?;
        kill_process(pid, signal).with_context(|| format!("cannot send a signal: {}", self.title))
    }

    /// Kills the command and all its descendants.
    pub fn kill(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// Returns standard output and standard error until now.
    pub fn so_far(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let [stdout, stderr] = &mut self.streams;
        stdout.drain()?;
        stderr.drain()?;
        Ok((stdout.bytes.clone(), stderr.bytes.clone()))
    }

    /// Waits until the command ends or reaches its limit. A daemon may keep the pipes open, so the
    /// end of output does not count.
    pub fn wait(mut self) -> Result<Output> {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a child")?;
        let end = self.started + self.limit;
        let status = loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.kill()?;
                self.child.wait()?;
                break Status::TimedOut(self.limit);
            }
            let [stdout, stderr] = &self.streams;
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(stdout.poll());
            fds.extend(stderr.poll());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot poll"),
            }
            drop(fds);
            let ended = self.child.try_wait()?;
            let [stdout, stderr] = &mut self.streams;
            stdout.drain()?;
            stderr.drain()?;
            if let Some(status) = ended {
                break status.into();
            }
        };
        self.reaped = true;
        // If a daemon is left, the cgroup stays until the host ends.
        let _ = self.cgroup.remove_empty();
        let [stdout, stderr] = &mut self.streams;
        let (stdout, stderr) = (
            std::mem::take(&mut stdout.bytes),
            std::mem::take(&mut stderr.bytes),
        );
        let title = std::mem::take(&mut self.title);
        Ok(Output {
            status,
            stdout,
            stderr,
            elapsed: self.started.elapsed(),
            title,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.cgroup.remove();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Reading end of a pipe, and the bytes read so far.
#[derive(Debug)]
struct Stream {
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Stream {
    fn new(fd: OwnedFd) -> Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            file: Some(fd.into()),
            bytes: Vec::new(),
        })
    }

    fn poll(&self) -> Option<PollFd<'_>> {
        self.file
            .as_ref()
            .map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN))
    }

    /// Reads all available bytes.
    fn drain(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        match file.read_to_end(&mut self.bytes) {
            Ok(_) => self.file = None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot read the output"),
        }
        Ok(())
    }
}
