//! Commands in a host: bounded in time, captured, and said in full when they fail.

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;

/// Where programs are looked for in a host.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LIMIT: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It did not, and was killed with all it had started.
    TimedOut(Duration),
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        status.code().map_or_else(
            || Self::Signal(status.signal().unwrap_or_default()),
            Self::Code,
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut(limit) => write!(f, "still running after {limit:?}, killed"),
        }
    }
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output until it ended.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error until it ended.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub elapsed: Duration,
    title: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// Itself, or an error that shows everything when it did not exit with 0.
    #[track_caller]
    pub fn ok(self) -> Result<Self> {
        self.code(0)
    }

    /// Itself, or an error that shows everything when it did not exit with this code.
    #[track_caller]
    pub fn code(self, code: i32) -> Result<Self> {
        if self.status == Status::Code(code) {
            return Ok(self);
        }
        let place = std::panic::Location::caller();
        bail!(
            "expected exit {code} at {}:{}\n{self}",
            place.file(),
            place.line()
        )
    }

    /// Standard output as text, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Standard error as text, without the newline at its end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr)
            .trim_end_matches('\n')
            .to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} after {:?}",
            self.title, self.status, self.elapsed
        )?;
        writeln!(f, "--- stdout\n{}", self.text())?;
        write!(f, "--- stderr\n{}", self.error_text())
    }
}

/// A command that is about to be run in a host.
#[derive(Debug)]
pub struct Run {
    command: Command,
    title: String,
    cgroup: Cgroup,
    limit: Duration,
}

impl Run {
    /// A command for the namespaces of `pid`, in a cgroup that is made for it alone.
    pub(crate) fn new<S: AsRef<OsStr>>(
        host: &str,
        pid: i32,
        cgroup: Cgroup,
        argv: &[S],
    ) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command
            .arg("enter")
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

    /// Sets a variable of its environment, which otherwise has PATH, HOME and LANG.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it this file as standard input; otherwise it is `/dev/null`.
    pub fn stdin(mut self, file: impl Into<Stdio>) -> Self {
        self.command.stdin(file);
        self
    }

    /// Gives it these bytes as standard input.
    pub fn input(self, bytes: &[u8]) -> Result<Self> {
        use std::io::{Seek, Write};
        let fd = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        file.rewind()?;
        Ok(self.stdin(file))
    }

    /// Sets the time limit, which otherwise is a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
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

    /// Runs it to its end on this process's own terminal, without a limit.
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

    /// Runs it to its end.
    pub fn run(self) -> Result<Output> {
        self.spawn()?.wait()
    }
}

/// A command that runs in a host. Dropping it kills it, with all it has started.
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
    /// The command's own process, as the machine numbers it.
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

    /// Sends a signal to the command itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()?).context("no process")?;
        kill_process(pid, signal).with_context(|| format!("cannot send a signal: {}", self.title))
    }

    /// Kills it, with all it has started.
    pub fn kill(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// What it has written to standard output and standard error until now.
    pub fn so_far(&mut self) -> Result<(Vec<u8>, Vec<u8>)> {
        let [stdout, stderr] = &mut self.streams;
        stdout.drain()?;
        stderr.drain()?;
        Ok((stdout.bytes.clone(), stderr.bytes.clone()))
    }

    /// Waits until it has ended or its time is over. A daemon that it leaves behind may hold the other ends of the
    /// pipes, so it is the end of the process that counts, not the end of its output.
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
        // A daemon may have stayed: then the cgroup stays as well, until the host ends.
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

/// The reading end of a pipe and what came through it.
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

    /// Reads what is there.
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

/// The `lab` binary: this program, or the one that cargo puts beside or above the test program.
pub(crate) fn binary() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program")?;
    if this.file_name() == Some(OsStr::new("lab")) {
        return Ok(this);
    }
    let places = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|place| place.join("lab"));
    let found = places.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no program named lab near {}\nhint: cargo build -p spc-tests",
            this.display()
        )
    })
}

/// Words as arguments of a command.
pub(crate) fn words<S: AsRef<OsStr>>(argv: &[S]) -> Vec<OsString> {
    argv.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// Runs a program of the machine to its end; its output is for the developer.
pub(crate) fn machine(program: impl AsRef<OsStr>, arguments: &[&OsStr]) -> Result<()> {
    let program = program.as_ref();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    ensure!(
        status.success(),
        "{} {}: {status}",
        program.display(),
        words.join(" ")
    );
    Ok(())
}

/// Reads a line from a process that the lab has just started, or says that it failed.
pub(crate) fn expect_line(reader: &mut impl std::io::BufRead, what: &str) -> Result<String> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .with_context(|| format!("cannot read from {what}"))?;
    ensure!(!line.is_empty(), "{what} failed, see its message above");
    Ok(line.trim_end().to_owned())
}

/// Whether a path can stand in the options of an overlay without quoting.
pub(crate) fn is_plain(path: &Path) -> bool {
    !path.to_string_lossy().contains([',', ':', '\\'])
}
