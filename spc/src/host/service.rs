//! Services: daemons that mounts share, at most one of each in a network namespace.
//!
//! One that answers already, such as the host's own, is used and left alone. One that is started here runs detached,
//! is known by the mark in its environment, and ends with the last mount that needs it or with the container.
//! Starting and ending hold one lock, which the kernel gives back if its holder dies.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

use crate::error::{Cause, Error, Result, errno_text};
use crate::host::runs_in::{self, RunsIn};
use crate::host::{cgroup, file_lock, rpc};
use crate::process::marks;
use crate::process::output::Output;
use crate::sys;

/// In the container: an empty file for each service that was started here, and the lock.
const DIR: &str = "/run/spc/services";

/// Environment variable of a service that was started here: `NAME@` and the container's mount namespace.
const MARK: &str = "SPC_SERVICE";

/// Where services' programs are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a service may take until it answers.
const START: Duration = Duration::from_secs(10);

/// How long to wait for another command that starts or ends services.
const TURN: Duration = Duration::from_secs(30);

/// How long a service may take to end after each signal.
const END: Duration = Duration::from_secs(2);

/// A daemon that mounts share.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name here.
    pub name: &'static str,
    /// Its program.
    pub program: &'static str,
    /// Arguments with which it stays in the foreground.
    pub args: &'static [&'static str],
    /// How it shows that it is ready.
    pub ready: Ready,
    /// What to do if it cannot be started.
    pub hint: &'static str,
}

/// How a service shows that it is ready; both ways belong to a network namespace.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// A program of Sun RPC answers on loopback.
    Rpc {
        /// Its number.
        program: u32,
        /// The version that is needed.
        version: u32,
    },
    /// Something listens on an abstract UNIX socket of this name.
    Abstract(&'static str),
}

impl Ready {
    fn holds(self) -> bool {
        match self {
            Self::Rpc { program, version } => rpc::answers(program, version),
            Self::Abstract(name) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixStream::connect_addr(&address))
                .is_ok(),
        }
    }
}

/// Makes sure that a service answers, and starts it if it does not.
///
/// # Errors
/// It cannot be started, ends at once, or does not answer in time.
pub fn ensure(service: &Service) -> Result<()> {
    let _turn = take_turn()?;
    if service.ready.holds() {
        return Ok(());
    }
    // One that was started here and has lost its place, as after an end of rpcbind.
    stop(service, &ours(service)?)?;
    start(service)
}

/// Ends a service if it was started here and nothing needs it, which is asked when nobody can begin to use it any more.
/// True if it was ended.
///
/// # Errors
/// It does not end, or its need cannot be told.
pub fn end(service: &Service, needed: impl Fn() -> Result<bool>) -> Result<bool> {
    if !started(service) {
        return Ok(false);
    }
    let _turn = take_turn()?;
    let held = ours(service)?;
    if held.is_empty() {
        // It died; where it is needed the note stays, for it to be started again.
        if !needed()? {
            forget(service);
        }
        return Ok(false);
    }
    if !needed()? {
        // From here on it answers nobody: who finds no service waits for our lock. Who found one before that is seen now.
        send(&held, Signal::STOP)?;
        if matches!(needed(), Ok(false)) {
            stop(service, &held)?;
            forget(service);
            return Ok(true);
        }
    }
    // One that a dead command had stopped goes on as well.
    send(&held, Signal::CONT)?;
    Ok(false)
}

/// Ends a service if it was started here, needed or not: the container ends. It is still known as one to be revived.
///
/// # Errors
/// It does not end.
pub fn leave(service: &Service) -> Result<()> {
    if !started(service) {
        return Ok(());
    }
    let _turn = take_turn()?;
    stop(service, &ours(service)?)
}

/// Whether a service may have been started here and not been ended since; quick.
pub fn started(service: &Service) -> bool {
    note(service).exists()
}

/// Starts a service again that was started here and does not answer any more: its daemon died, or the container was
/// restarted.
///
/// # Errors
/// As of [`ensure`].
pub fn revive(service: &Service) -> Result<()> {
    if !started(service) || service.ready.holds() {
        return Ok(());
    }
    let _turn = take_turn()?;
    // Another command may have ended it while we waited, and nothing needs it.
    if !started(service) || service.ready.holds() {
        return Ok(());
    }
    tracing::info!(service = service.name, "started again");
    stop(service, &ours(service)?)?;
    start(service)
}

fn note(service: &Service) -> PathBuf {
    PathBuf::from(DIR).join(service.name)
}

fn forget(service: &Service) {
    let note = note(service);
    match fs::remove_file(&note) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %note.display(), %error, "cannot be removed");
        }
        _ => {}
    }
}

/// Whether any was started in the tree that is at `root`.
pub fn any_started(root: &Path) -> bool {
    let noted = fs::read_dir(root.join(DIR.trim_start_matches('/')));
    let is_service = |entry: fs::DirEntry| entry.file_name() != "lock";
    noted.into_iter().flatten().flatten().any(is_service)
}

/// The right to start and end services, until dropped.
fn take_turn() -> Result<File> {
    let failed = |e: std::io::Error| {
        Error::system(format!("cannot lock {DIR}/lock"))
            .because(e)
            .hint("the directory must be writable: with a read-only container, add --tmpfs /run")
    };
    let file = file_lock::open(Path::new(DIR), 0o700).map_err(failed)?;
    file_lock::acquire(&file, FlockOperation::NonBlockingLockExclusive, TURN).map_err(failed)?;
    Ok(file)
}

/// The mark of a service of this container.
fn mark(service: &Service) -> Result<String> {
    let own = fs::metadata("/proc/self/ns/mnt").map_err(|e| {
        Error::system("cannot look at our own mount namespace: /proc/self/ns/mnt").because(e)
    })?;
    Ok(format!("{}@{}", service.name, own.ino()))
}

/// The processes of a service that was started here.
fn ours(service: &Service) -> Result<Vec<OwnedFd>> {
    marks::hold_marked(&format!("{MARK}={}", mark(service)?))
        .map_err(|e| Error::system(format!("cannot look for {}", service.name)).because(e))
}

fn start(service: &Service) -> Result<()> {
    let name = service.name;
    let fail = |cause: Cause| {
        Error::system(format!("cannot start {name}"))
            .because(cause)
            .hint(service.hint)
    };
    let system = |e: std::io::Error| fail(e.into());
    let output = Output::new().map_err(system)?;
    let mut command = Command::new(service.program);
    command
        .args(service.args)
        .env_clear()
        .env("PATH", PATH)
        .env(MARK, mark(service)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.handle().map_err(system)?)
        .stderr(output.handle().map_err(system)?);
    // The note comes first: what has none is not looked for.
    File::create(note(service)).map_err(system)?;
    // Mounts that outlive the container need it as long as they do.
    let child = match runs_in::current() {
        RunsIn::ClientRoot(_) => {
            cgroup::start(name, &format!("spc: {name}"), &mut command, sys::detach)?
        }
        RunsIn::Container | RunsIn::Host => {
            Pid::from_child(&sys::detach(&mut command).spawn().map_err(system)?)
        }
    };
    let waited = wait_for(service, child);
    output.seal();
    let Err(cause) = waited else {
        tracing::info!(service = name, "started");
        return Ok(());
    };
    let log = output.last_lines(|line| Some(line));
    stop(service, &ours(service)?)?;
    // Nobody else reaps it if this process lives on.
    let _ = waitpid(Some(child), WaitOptions::NOHANG);
    forget(service);
    Err(fail(cause.into()).log(log))
}

fn wait_for(service: &Service, child: Pid) -> std::result::Result<(), String> {
    let until = Instant::now() + START;
    loop {
        if service.ready.holds() {
            return Ok(());
        }
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => return Err(format!("no answer in {} s", START.as_secs())),
            Ok(Some((_, status))) => return Err(ExitStatus::from_raw(status.as_raw()).to_string()),
            Err(error) => return Err(errno_text(error)),
        }
    }
}

fn send(held: &[OwnedFd], signal: Signal) -> Result<()> {
    for pidfd in held {
        match pidfd_send_signal(pidfd, signal) {
            // It has ended by itself.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                return Err(Error::system("cannot send a signal to a service")
                    .because(error)
                    .hint("it runs as another user: start the container with --cap-add=KILL"));
            }
        }
    }
    Ok(())
}

/// Ends processes of a service: TERM, and KILL after 2 s.
fn stop(service: &Service, held: &[OwnedFd]) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        send(held, signal)?;
        // It may have been stopped.
        send(held, Signal::CONT)?;
        let until = Instant::now() + END;
        if marks::all_ended(held, until) {
            return Ok(());
        }
    }
    Err(Error::system(format!("{} does not end", service.name))
        .hint("it waits in the kernel; the container's end takes it along"))
}
