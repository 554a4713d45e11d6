//! Access to the host's mount namespace by one thread that runs in it.
//!
//! A thread that has unshared its root and working directory (`CLONE_FS`) can enter another mount
//! namespace, while the other threads stay (setns(2)). This needs no fork, and file descriptors
//! opened there work in the whole process.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::thread::CapabilitySet;

use crate::error::{Error, Result, errno_text};
use crate::host::mount_id::mount_id;
use crate::host::runs_in::{RunsIn, current};
use crate::host::{Settings, confinement, namespace};

/// Timeout for one job on the host.
const LIMIT: Duration = Duration::from_secs(20);

/// Capabilities that every mount needs: bit, name, and purpose for the error text.
pub const REQUIRED_CAPABILITIES: [(CapabilitySet, &str, &str); 3] = [
    (
        CapabilitySet::SYS_ADMIN,
        "SYS_ADMIN",
        "to mount, and to enter the host's mount namespace",
    ),
    (
        CapabilitySet::SYS_CHROOT,
        "SYS_CHROOT",
        "to enter the host's mount namespace",
    ),
    (
        CapabilitySet::SYS_PTRACE,
        "SYS_PTRACE",
        "to open the host's mount namespace",
    ),
];

/// Function that runs on the host's thread.
type Job = Box<dyn FnOnce() + Send>;

/// Limit of blocked threads that are replaced.
const MAX_LOST: usize = 8;

/// Host, with a thread in its mount namespace.
pub struct Host {
    settings: Settings,
    worker: Mutex<Worker>,
    namespace: PathBuf,
    file: File,
}

/// Thread in the host's mount namespace.
struct Worker {
    jobs: Sender<Job>,
    /// Number of threads before this one that blocked and were replaced.
    lost: usize,
}

impl Host {
    /// Finds the host's mount namespace and starts a thread in it.
    ///
    /// # Errors
    /// Fails if the caller is not root, a capability is missing, or no namespace file leads to
    /// another mount namespace that this process can enter.
    pub fn open(settings: Settings) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::usage("only root can mount on the host")
                .hint("run spc as root of the container: docker exec without --user"));
        }
        if let Some((name, why)) = missing_capabilities()?.first() {
            return Err(Error::system(format!("capability CAP_{name} is missing"))
                .because(format!("it is needed {why}"))
                .hint(format!(
                    "start the container with --privileged or --cap-add={name}"
                )));
        }
        let (namespace, file) = find(&settings)?;
        match start(&file) {
            Ok(jobs) => Ok(Self {
                settings,
                worker: Mutex::new(Worker { jobs, lost: 0 }),
                namespace,
                file,
            }),
            Err(Some(error)) => Err(Error::system(format!(
                "cannot enter the host's mount namespace {}",
                namespace.display()
            ))
            .because(error)
            .hint("the container must run as root of the host's user namespace, with SYS_ADMIN and SYS_CHROOT, and without a seccomp filter on setns")),
            Err(None) => Err(timed_out("entering the host's mount namespace", LIMIT)),
        }
    }

    /// Returns the settings by which the host was found.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a job on the host's thread, whose root is the host's root, and returns its result.
    /// `action` names the job in the error, such as `pinning the target`.
    ///
    /// # Errors
    /// Fails if the job takes longer than 20 s. The thread is then left behind and replaced.
    pub fn run<T: Send + 'static>(
        &self,
        action: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.run_within(action, LIMIT, job)
    }

    /// Runs a job like [`Host::run`], with another timeout.
    ///
    /// # Errors
    /// Fails if the job takes longer than `limit`. The thread is then left behind and replaced.
    pub fn run_within<T: Send + 'static>(
        &self,
        action: &str,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = channel();
        let job: Job = Box::new(move || {
            // The receiver is gone if the caller has timed out.
            let _ = sender.send(job());
        });
        let worker = self.worker();
        let (sent, lost) = (worker.jobs.send(job), worker.lost);
        drop(worker);
        if sent.is_err() {
            return Err(timed_out(action, limit));
        }
        match receiver.recv_timeout(limit) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.replace(lost);
                Err(timed_out(action, limit))
            }
        }
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a blocked thread, so that the next job does not wait for it. `lost` is the counter
    /// of that thread.
    fn replace(&self, lost: usize) {
        let mut worker = self.worker();
        // A different counter means that another caller has replaced the thread already.
        if worker.lost == lost
            && lost < MAX_LOST
            && let Ok(jobs) = start(&self.file)
        {
            *worker = Worker {
                jobs,
                lost: lost + 1,
            };
        }
    }

    /// Checks that a process on the host itself has the mount namespace and the root directory in
    /// which spc mounts. A mount of such a process would otherwise appear in another place than its
    /// caller expects.
    ///
    /// # Errors
    /// Fails if this process has another mount namespace or root directory, or, on a host with
    /// systemd, another PID namespace.
    pub fn check_caller(&self) -> Result<()> {
        if current() != RunsIn::Host {
            return Ok(());
        }
        if has_other_first_process() {
            return Err(Error::usage("the caller's PID namespace is not the host's")
                .because("process 1 of its /proc is not the host's systemd")
                .hint("run it on the host itself, or by nsenter --target PID --mount --pid, with the PID of the host's systemd; in a systemd service, leave out PrivatePIDs="));
        }
        let unreadable = |e: std::io::Error| {
            Error::system("cannot compare the caller's mount namespace with the host's").because(e)
        };
        let id = |file: &Metadata| (file.dev(), file.ino());
        let own = std::fs::metadata("/proc/self/ns/mnt").map_err(unreadable)?;
        let entered = self.file.metadata().map_err(unreadable)?;
        if id(&own) != id(&entered) {
            return Err(Error::usage("the caller's mount namespace is not the host's")
                .because("spc mounts and unmounts only in the host's")
                .hint("run it on the host itself, or by nsenter --target 1 --mount; in a systemd service, use a mount unit or leave out PrivateMounts=; in place of mount(8) with X-mount.subdir=, use `spc mount`"));
        }
        let root = move || -> std::io::Result<_> {
            let root = File::open("/")?;
            let mount = mount_id(&root, OsStr::new(""))?;
            Ok((id(&root.metadata()?), mount.id))
        };
        let hosts = self.run("looking at the root directory", root)?;
        if root().map_err(unreadable)? != hosts.map_err(unreadable)? {
            return Err(
                Error::usage("the caller's root directory is not the host's")
                    .because("spc mounts and unmounts only below the host's")
                    .hint(
                        "run the command outside of the chroot, with the target's path on the host",
                    ),
            );
        }
        Ok(())
    }

    /// Returns the path of the namespace file that was entered.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// Returns the path of the host's mount table. A change of the table is a POLLPRI event
    /// (proc_pid_mounts(5)).
    pub fn mount_table(&self) -> PathBuf {
        self.proc_file("mountinfo")
            .unwrap_or_else(|| "/proc/1/mountinfo".into())
    }

    /// Returns the path of a procfs file of the process whose namespace was entered, such as
    /// `/proc/1/NAME`.
    pub fn proc_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.namespace.parent()?.parent()?.join(name))
    }
}

/// Returns whether process 1 of `/proc` is not the host's systemd, which has a cgroup of its own. It
/// is another process in a PID namespace with a `/proc` of its own (`unshare --pid --mount-proc`).
fn has_other_first_process() -> bool {
    // Cgroups of version 2, of both versions, and of version 1.
    let members = ["", "unified/", "systemd/"].map(|hierarchy| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{hierarchy}init.scope/cgroup.procs"))
    });
    let mut members = members.into_iter().flatten();
    members.any(|pids| pids.lines().all(|pid| pid != "1"))
}

fn timed_out(action: &str, limit: Duration) -> Error {
    Error::system(format!("timed out on the host: {action}"))
        .because(format!("no answer in {} s", limit.as_secs()))
        .hint("a dead network file system in the path of the target can cause this: see `spc ls`")
}

/// Starts a thread in the namespace. An error without a text is a timeout.
fn start(namespace: &File) -> std::result::Result<Sender<Job>, Option<String>> {
    let file = namespace.try_clone().map_err(|e| Some(errno_text(e)))?;
    let (jobs, inbox) = channel::<Job>();
    let (entered, result) = channel();
    let thread = std::thread::Builder::new().name("host".into());
    let spawned = thread.spawn(move || {
        let result = enter(&file);
        drop(file);
        let is_entered = result.is_ok();
        if entered.send(result).is_ok() && is_entered {
            work(&inbox);
        }
    });
    spawned.map_err(|e| Some(format!("cannot start a thread: {}", errno_text(e))))?;
    match result.recv_timeout(LIMIT) {
        Ok(result) => result.map(|()| jobs).map_err(Some),
        Err(_) => Err(None),
    }
}

/// Moves the calling thread, and no other thread, into a mount namespace for good.
///
/// # Errors
/// Returns the call that failed, and its errno as text.
pub fn enter(namespace: &File) -> std::result::Result<(), String> {
    unshare(CloneFlags::CLONE_FS).map_err(|e| format!("unshare: {}", errno_text(e)))?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|e| format!("setns: {}", errno_text(e)))
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv() {
        job();
    }
}

/// Returns name and purpose of the [`REQUIRED_CAPABILITIES`] that this process lacks.
///
/// # Errors
/// Fails if capget(2) fails.
pub fn missing_capabilities() -> Result<Vec<(&'static str, &'static str)>> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|e| Error::system("cannot read the capabilities").because(e))?;
    Ok(REQUIRED_CAPABILITIES
        .iter()
        .filter(|(bit, ..)| !sets.effective.contains(*bit))
        .map(|(_, name, why)| (*name, *why))
        .collect())
}

/// Returns the first namespace file of the settings that can be opened and is another mount
/// namespace than the one of this process. On the host itself it may be the same.
///
/// # Errors
/// Fails if there is no such file.
pub fn find(settings: &Settings) -> Result<(PathBuf, File)> {
    let own = std::fs::metadata("/proc/self/ns/mnt").map_err(|e| {
        Error::system("cannot read the mount namespace of this process: /proc/self/ns/mnt")
            .because(e)
            .hint("a procfs of this PID namespace must be mounted on /proc")
    })?;
    let mut tried = Vec::new();
    let (mut found_own, mut denied) = (false, false);
    for path in settings.namespaces() {
        match File::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(|e| {
                    Error::system(format!("cannot read {}", path.display())).because(e)
                })?;
                // The own namespace is the host's only if this process runs outside of a container.
                if (found.dev(), found.ino()) != (own.dev(), own.ino()) || current() == RunsIn::Host
                {
                    return Ok((path, file));
                }
                found_own = true;
                tried.push(format!(
                    "{}: this is the container's own mount namespace",
                    path.display()
                ));
            }
            Err(error) => {
                denied |= error.kind() == ErrorKind::PermissionDenied;
                tried.push(format!("{}: {}", path.display(), errno_text(error)));
            }
        }
    }
    let hint = match confinement::hint().filter(|_| denied) {
        Some(hint) => hint,
        None if found_own => "spc needs the host's processes in the container: start the container with --pid=host".into(),
        None => "the host's /proc is needed: start the container with --pid=host and --cap-add=SYS_PTRACE".into(),
    };
    Err(Error::system("the host's mount namespace was not found")
        .log(tried)
        .hint(hint))
}

/// Returns whether the container shares the host's namespace of a kind, such as `net` or `pid`;
/// none if a namespace file cannot be read.
pub fn shares_namespace(settings: &Settings, kind: &str) -> Option<bool> {
    let (host, _) = namespace::find(settings).ok()?;
    let host = std::fs::metadata(host.with_file_name(kind)).ok()?;
    let own = std::fs::metadata(format!("/proc/self/ns/{kind}")).ok()?;
    Some((own.dev(), own.ino()) == (host.dev(), host.ino()))
}

/// Returns whether the container shares the host's network namespace; none if that is unknown.
pub fn shares_network(settings: &Settings) -> Option<bool> {
    let inode = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/net/dev")).ok()?;
        Some((file.dev(), file.ino()))
    };
    shares_namespace(settings, "net").or_else(|| {
        // A process whose namespaces may not be read is not the container's own first process. The
        // files of /proc/PID/net have inode numbers of their own in each network namespace.
        let error = File::open("/proc/1/ns/net").err()?;
        let is_host = error.kind() == ErrorKind::PermissionDenied;
        is_host.then(|| Some(inode("1")? == inode("self")?))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_job_does_not_block_the_next() {
        // Only root may enter a namespace, even its own.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let namespace = PathBuf::from("/proc/self/ns/mnt");
        let file = File::open(&namespace).unwrap();
        let jobs = start(&file).unwrap();
        let host = Host {
            settings: Settings::read().unwrap(),
            worker: Mutex::new(Worker { jobs, lost: 0 }),
            namespace,
            file,
        };
        let (sender, receiver) = channel::<()>();
        let block = move || receiver.recv().is_ok();
        let late = host.run_within("blocking", Duration::from_millis(50), block);
        assert!(late.unwrap_err().summary().contains("no answer"));
        assert_eq!(host.run("answering", || 7).unwrap(), 7);
        assert_eq!(host.worker().lost, 1);
        drop(sender);
    }
}
