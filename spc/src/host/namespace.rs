//! The way into the host's mount namespace: one thread that lives there.
//!
//! A thread with an fs struct of its own (`CLONE_FS` unshared) may enter another mount namespace
//! while the rest of the process stays where it is (setns(2)). Nothing is forked and nothing has
//! to be restored; descriptors opened there serve the whole process.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::thread::CapabilitySet;

use crate::error::{Error, Result, errno_text};
use crate::host::runs_in::{RunsIn, current};
use crate::host::{Settings, confinement, namespace};

/// How long one look at or change of the host may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Capabilities without which nothing works, and what each is for.
pub const NEEDED: [(CapabilitySet, &str, &str); 3] = [
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

type Job = Box<dyn FnOnce() + Send>;

/// How many threads may be lost to file systems that do not answer.
const SPARE: usize = 8;

/// The host's mount namespace, entered.
pub struct Host {
    settings: Settings,
    worker: Mutex<Worker>,
    namespace: PathBuf,
    file: File,
}

/// The thread that lives there.
struct Worker {
    jobs: Sender<Job>,
    /// How many of its kind were lost before.
    lost: usize,
}

impl Host {
    /// Finds the host's mount namespace and starts a thread in it.
    ///
    /// # Errors
    /// A capability is missing, no namespace file can be opened, or all of them are our own.
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
            Err(None) => Err(too_slow("entering the host's mount namespace", LIMIT)),
        }
    }

    /// Returns the settings by which the host was found.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a job with the host's root as its root; its result comes back here.
    ///
    /// # Errors
    /// The job took longer than 20 s; it is then left behind, with the thread.
    pub fn run<T: Send + 'static>(
        &self,
        what: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.run_within(what, LIMIT, job)
    }

    /// Like [`Host::run`], for a job that may take longer or must not take as long.
    ///
    /// # Errors
    /// The job took longer than that; it is then left behind, with the thread.
    pub fn run_within<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = channel();
        let job: Job = Box::new(move || {
            // The caller may have given up; then nobody wants the result.
            let _ = done.send(job());
        });
        let worker = self.worker();
        let (sent, before) = (worker.jobs.send(job), worker.lost);
        drop(worker);
        if sent.is_err() {
            return Err(too_slow(what, limit));
        }
        match answer.recv_timeout(limit) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.replace(before);
                Err(too_slow(what, limit))
            }
        }
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another thread takes the place of one that is lost, so that the next job does not wait behind the one that hangs.
    fn replace(&self, lost: usize) {
        let mut worker = self.worker();
        // Somebody else who waited for the same one may have been here before.
        if worker.lost == lost
            && lost < SPARE
            && let Ok(jobs) = start(&self.file)
        {
            *worker = Worker {
                jobs,
                lost: lost + 1,
            };
        }
    }

    /// The namespace file that was used.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// The host's mount table, which tells of a change as POLLPRI (proc_pid_mounts(5)).
    pub fn mount_table(&self) -> PathBuf {
        self.proc_file("mountinfo")
            .unwrap_or_else(|| "/proc/1/mountinfo".into())
    }

    /// A file of procfs for the host's first process, next to the namespace file: `/proc/1/NAME`.
    pub fn proc_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.namespace.parent()?.parent()?.join(name))
    }
}

fn too_slow(what: &str, limit: Duration) -> Error {
    Error::system(format!("no answer from the host: {what}"))
        .because(format!("waited {} s", limit.as_secs()))
        .hint(
            "a dead network file system on the way to the target can cause this; look at `spc ls`",
        )
}

/// Starts a thread in the namespace. Nothing as error means that it is not there in time.
fn start(namespace: &File) -> std::result::Result<Sender<Job>, Option<String>> {
    let file = namespace.try_clone().map_err(|e| Some(errno_text(e)))?;
    let (jobs, inbox) = channel::<Job>();
    let (entered, answer) = channel();
    let thread = std::thread::Builder::new().name("host".into());
    let spawned = thread.spawn(move || {
        let result = enter(&file);
        drop(file);
        let go_on = result.is_ok();
        if entered.send(result).is_ok() && go_on {
            work(&inbox);
        }
    });
    spawned.map_err(|e| Some(format!("cannot start a thread: {}", errno_text(e))))?;
    match answer.recv_timeout(LIMIT) {
        Ok(result) => result.map(|()| jobs).map_err(Some),
        Err(_) => Err(None),
    }
}

/// Takes the calling thread, and no other, into a mount namespace for good.
///
/// # Errors
/// The call that failed, and why.
pub fn enter(namespace: &File) -> std::result::Result<(), String> {
    unshare(CloneFlags::CLONE_FS).map_err(|e| format!("unshare: {}", errno_text(e)))?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|e| format!("setns: {}", errno_text(e)))
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv() {
        job();
    }
}

/// The capabilities of [`NEEDED`] that this process lacks.
///
/// # Errors
/// The kernel does not tell.
pub fn missing_capabilities() -> Result<Vec<(&'static str, &'static str)>> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|e| Error::system("cannot read the capabilities").because(e))?;
    Ok(NEEDED
        .iter()
        .filter(|(bit, ..)| !sets.effective.contains(*bit))
        .map(|(_, name, why)| (*name, *why))
        .collect())
}

/// The first namespace file that opens and is not our own.
///
/// # Errors
/// There is none.
pub fn find(settings: &Settings) -> Result<(PathBuf, File)> {
    let own = std::fs::metadata("/proc/self/ns/mnt").map_err(|e| {
        Error::system("cannot look at our own mount namespace: /proc/self/ns/mnt")
            .because(e)
            .hint("a procfs of this PID namespace must be on /proc")
    })?;
    let mut tried = Vec::new();
    let (mut own_seen, mut denied) = (false, false);
    for path in settings.namespaces() {
        match File::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(|e| {
                    Error::system(format!("cannot look at {}", path.display())).because(e)
                })?;
                // Only where no container is between us and the host is ours the host's.
                if (found.dev(), found.ino()) != (own.dev(), own.ino()) || current() == RunsIn::Host
                {
                    return Ok((path, file));
                }
                own_seen = true;
                tried.push(format!(
                    "{}: this is our own mount namespace",
                    path.display()
                ));
            }
            Err(error) => {
                denied |= error.kind() == ErrorKind::PermissionDenied;
                tried.push(format!("{}: {}", path.display(), errno_text(error)));
            }
        }
    }
    let hint = match confinement::confinement().filter(|_| denied) {
        Some(hint) => hint,
        None if own_seen => "spc runs inside the container, and needs the host's processes there: start the container with --pid=host".into(),
        None => "the host's /proc is needed: start the container with --pid=host and --cap-add=SYS_PTRACE".into(),
    };
    Err(Error::system("the host's mount namespace was not found")
        .log(tried)
        .hint(hint))
}

/// Whether the container is in the host's namespace of this kind, as `net` or `pid`; none where that cannot be told.
pub fn shares(settings: &Settings, kind: &str) -> Option<bool> {
    let (host, _) = namespace::find(settings).ok()?;
    let host = std::fs::metadata(host.with_file_name(kind)).ok()?;
    let own = std::fs::metadata(format!("/proc/self/ns/{kind}")).ok()?;
    Some((own.dev(), own.ino()) == (host.dev(), host.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_hangs_does_not_hold_up_the_next() {
        // Only root may enter a namespace, be it its own.
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
        let (go, held) = channel::<()>();
        let hang = move || held.recv().is_ok();
        let late = host.run_within("hanging", Duration::from_millis(50), hang);
        assert!(late.unwrap_err().summary().contains("no answer"));
        assert_eq!(host.run("answering", || 7).unwrap(), 7);
        assert_eq!(host.worker().lost, 1);
        drop(go);
    }
}
