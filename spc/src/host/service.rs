//! Services: daemons that mounts share, such as rpcbind. A network namespace has at most one of
//! each.
//!
//! A service that answers already, such as the host's own, is used and never stopped. A service
//! that spc starts runs detached and has a mark in its environment. It is stopped with the last
//! mount that needs it, or with the container. Start and stop hold one lock, which the kernel
//! releases if its holder dies.

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

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

use crate::error::{Cause, Error, Result, errno_text};
use crate::host::file_lock::{self, LockMode};
use crate::host::runs_in::{self, RunsIn};
use crate::host::{cgroup, rpc};
use crate::process::marks;
use crate::process::output::Output;
use crate::sys;

/// Directory in the container with an empty file per service that spc started, and the lock.
const DIR: &str = "/run/spc/services";

/// Environment variable that marks a service which spc started. Its value is `NAME@` and the inode
/// number of the container's mount namespace.
const MARK: &str = "SPC_SERVICE";

/// Search path for programs of services.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Timeout until a started service answers.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Timeout for the lock, which another command may hold while it starts or stops services.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Timeout for the exit of a service, per signal.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Daemon that mounts share.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Name in marks, files and errors.
    pub name: &'static str,
    /// Program, searched for in `PATH`.
    pub program: &'static str,
    /// Arguments, with which the program stays in the foreground.
    pub args: &'static [&'static str],
    /// Check that it is ready.
    pub ready: Ready,
    /// Hint for the error if it cannot be started.
    pub hint: &'static str,
}

/// Check that a service is ready. Both checks are local to a network namespace.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// Sun RPC program that answers on loopback.
    Rpc {
        /// Program number.
        program: u32,
        /// Version of the program.
        version: u32,
    },
    /// Name of an abstract UNIX socket on which the service listens as root (unix(7)). Any user can
    /// take a name that is free.
    Abstract(&'static str),
}

impl Ready {
    fn holds(self) -> bool {
        match self {
            Self::Rpc { program, version } => rpc::answers(program, version),
            Self::Abstract(name) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixStream::connect_addr(&address))
                .and_then(|service| Ok(socket_peercred(service)?))
                .is_ok_and(|peer| peer.uid.is_root()),
        }
    }
}

/// Starts a service unless it answers already.
///
/// # Errors
/// Fails if the service cannot be started, exits at once, or does not answer within 10 s.
pub fn ensure(service: &Service) -> Result<()> {
    let _lock = lock()?;
    if service.ready.holds() {
        return Ok(());
    }
    // A started service may still run but have lost its registration, as when rpcbind died.
    stop(service, &processes(service)?)?;
    start(service)
}

/// Stops a service if spc started it and `needed` says that no mount needs it. Returns whether it
/// was stopped. `needed` is called again after the service is suspended, when no mount can begin to
/// use it.
///
/// # Errors
/// Fails if the service does not exit, or `needed` fails.
pub fn stop_unused(service: &Service, needed: impl Fn() -> Result<bool>) -> Result<bool> {
    if !was_started(service) {
        return Ok(false);
    }
    let _lock = lock()?;
    let pidfds = processes(service)?;
    if pidfds.is_empty() {
        // The service died. If a mount needs it, its file stays, so that it is restarted.
        if !needed()? {
            remove_marker(service);
        }
        return Ok(false);
    }
    if !needed()? {
        // A suspended service answers no request. A mount that finds no service waits for the lock;
        // a mount that found it earlier is visible to the second check.
        send(&pidfds, Signal::STOP)?;
        if matches!(needed(), Ok(false)) {
            stop(service, &pidfds)?;
            remove_marker(service);
            return Ok(true);
        }
    }
    // A command that was killed here may have left the service suspended, so that it is resumed
    // always.
    send(&pidfds, Signal::CONT)?;
    Ok(false)
}

/// Stops a service if spc started it, because the container ends. Its file stays, so that
/// [`revive`] can restart it.
///
/// # Errors
/// Fails if the service does not exit.
pub fn shut_down(service: &Service) -> Result<()> {
    if !was_started(service) {
        return Ok(());
    }
    let _lock = lock()?;
    stop(service, &processes(service)?)
}

/// Returns whether spc has started a service and not stopped it for good. Checks only for its file.
pub fn was_started(service: &Service) -> bool {
    marker(service).exists()
}

/// Restarts a service that spc started and that no longer answers, because its daemon died or the
/// container was restarted.
///
/// # Errors
/// Fails like [`ensure`].
pub fn revive(service: &Service) -> Result<()> {
    if !was_started(service) || service.ready.holds() {
        return Ok(());
    }
    let _lock = lock()?;
    // While this process waited, another command may have restarted it, or stopped it as unused.
    if !was_started(service) || service.ready.holds() {
        return Ok(());
    }
    tracing::info!(service = service.name, "restarting a service");
    stop(service, &processes(service)?)?;
    start(service)
}

/// Returns the path of the file that marks a service as started.
fn marker(service: &Service) -> PathBuf {
    PathBuf::from(DIR).join(service.name)
}

fn remove_marker(service: &Service) {
    let marker = marker(service);
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %marker.display(), %error, "cannot remove the marker of a service");
        }
        _ => {}
    }
}

/// Returns whether spc has started any service in the file system tree at `root`.
pub fn any_started(root: &Path) -> bool {
    let entries = fs::read_dir(root.join(DIR.trim_start_matches('/')));
    let is_service = |entry: fs::DirEntry| entry.file_name() != "lock";
    entries.into_iter().flatten().flatten().any(is_service)
}

/// Acquires the lock for start and stop of services.
fn lock() -> Result<File> {
    let failed = |e: std::io::Error| {
        Error::system(format!("cannot lock {DIR}/lock"))
            .hint(file_lock::hint(
                &e,
                "the directory must be writable: with a read-only container, add --tmpfs /run",
            ))
            .because(e)
    };
    let file = file_lock::open(Path::new(DIR), 0o700).map_err(failed)?;
    file_lock::acquire(&file, LockMode::Exclusive, LOCK_LIMIT).map_err(failed)?;
    Ok(file)
}

/// Returns the mark of a service of this container.
fn mark(service: &Service) -> Result<String> {
    let own = fs::metadata("/proc/self/ns/mnt").map_err(|e| {
        Error::system("cannot read the mount namespace of this process: /proc/self/ns/mnt")
            .because(e)
    })?;
    Ok(format!("{}@{}", service.name, own.ino()))
}

/// Returns pidfds of the processes of a service that spc started in this container.
fn processes(service: &Service) -> Result<Vec<OwnedFd>> {
    marks::open_service(MARK, &mark(service)?).map_err(|e| {
        Error::system(format!("cannot find the processes of {}", service.name)).because(e)
    })
}

/// Starts a service and waits until it is ready.
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
    // The marker comes first, because a service without a marker is never stopped.
    File::create(marker(service)).map_err(system)?;
    // Mounts from a client root file system outlive the container, and so must their services.
    let child = match runs_in::current() {
        RunsIn::ClientRoot(_) => {
            cgroup::start(name, &format!("spc: {name}"), &mut command, sys::detach)?
        }
        RunsIn::Container | RunsIn::Host => {
            Pid::from_child(&sys::detach(&mut command).spawn().map_err(system)?)
        }
    };
    let ready = wait_until_ready(service, child);
    output.seal();
    let Err(cause) = ready else {
        tracing::info!(service = name, "started a service");
        return Ok(());
    };
    let log = output.last_lines(|line| Some(line));
    stop(service, &processes(service)?)?;
    // A long-lived process must reap its child.
    let _ = waitpid(Some(child), WaitOptions::NOHANG);
    remove_marker(service);
    Err(fail(cause.into()).log(log))
}

/// Waits until a service is ready. Fails if it exits or the time is over.
fn wait_until_ready(service: &Service, child: Pid) -> std::result::Result<(), String> {
    let until = Instant::now() + START_LIMIT;
    loop {
        if service.ready.holds() {
            return Ok(());
        }
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => return Err(format!("no answer in {} s", START_LIMIT.as_secs())),
            Ok(Some((_, status))) => return Err(ExitStatus::from_raw(status.as_raw()).to_string()),
            Err(error) => return Err(errno_text(error)),
        }
    }
}

/// Sends a signal to processes of a service.
fn send(pidfds: &[OwnedFd], signal: Signal) -> Result<()> {
    for pidfd in pidfds {
        match pidfd_send_signal(pidfd, signal) {
            // ESRCH: the process has exited by itself.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                return Err(Error::system("cannot send a signal to a service")
                    .because(error)
                    .hint(
                        "the service runs as another user: start the container with --cap-add=KILL",
                    ));
            }
        }
    }
    Ok(())
}

/// Stops processes of a service: sends SIGTERM, and SIGKILL after 2 s.
fn stop(service: &Service, pidfds: &[OwnedFd]) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        send(pidfds, signal)?;
        // A suspended process handles the signal only after SIGCONT.
        send(pidfds, Signal::CONT)?;
        let until = Instant::now() + STOP_LIMIT;
        if marks::all_exited(pidfds, until) {
            return Ok(());
        }
    }
    Err(Error::system(format!("{} does not exit", service.name))
        .hint("it is blocked in the kernel and ends with the container"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Uid;
    use rustix::thread::set_thread_res_uid;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_of_another_user_is_not_the_service() {
        let is_root = rustix::process::geteuid().is_root();
        for (name, user) in [("spc-test-root", 0), ("spc-test-user", 1000)] {
            let listen = move || {
                let uid = Uid::from_raw(user);
                if is_root {
                    // Of this thread only.
                    set_thread_res_uid(uid, uid, uid).unwrap();
                }
                UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
            };
            let _listener = std::thread::spawn(listen).join().unwrap();
            assert_eq!(
                Ready::Abstract(name).holds(),
                is_root && user == 0,
                "{name}"
            );
        }
        assert!(!Ready::Abstract("spc-test-free").holds());
    }
}
