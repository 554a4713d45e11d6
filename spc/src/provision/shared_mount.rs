//! Mount of a backend on the host, which the calls of the controller share.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::client::enter;
use crate::error::{Error, Reason, Result};
use crate::host::mount_id::mount_id;
use crate::host::runs_in::RunsIn;
use crate::mount::Request;
use crate::mount::pipeline::{MountOutcome, mount};
use crate::process::interrupts::Interrupts;
use crate::provision::Share;
use crate::state::{Record, Session};
use crate::unmount;
use crate::unmount::escalate::UnmountMode;
use crate::volume::Volume;

/// Directory on the host in which backends are mounted.
const MOUNTS: &str = "/run/spc/backends";

/// Number of attempts at a mount that is dead, has outdated settings, or is unmounted meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// Limit for opening the root of a backend.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Returns the target of a backend on the host.
fn target(backend: &str) -> PathBuf {
    Path::new(MOUNTS).join(backend)
}

/// Mounts a backend unless it is mounted, and opens its root.
///
/// # Errors
/// The backend cannot be mounted, or its server does not respond.
pub fn open(
    session: &Session,
    backend: &str,
    volume: &Volume,
    interrupts: &Interrupts,
    deadline: Instant,
) -> Result<Share> {
    let target = target(backend);
    for _ in 0..MAX_ATTEMPTS {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = Request {
            timeout: Some(volume.timeout.min(left)),
            ..volume.request(&target.to_string_lossy())?
        };
        let record = match mount(session, request, interrupts) {
            Ok(MountOutcome::Mounted(record) | MountOutcome::AlreadyMounted(record)) => record,
            Err(error) if error.reason() == Reason::Dead => {
                let force_and_lazy = UnmountMode {
                    force: true,
                    lazy: true,
                };
                unmount::umount(session, &target, force_and_lazy)?;
                continue;
            }
            // The settings of the backend were changed since it was mounted.
            Err(error) if error.reason() == Reason::Occupied => {
                unmount::umount(session, &target, UnmountMode::default())?;
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(root) = open_root(session, &record)? {
            return Ok(Share::new(root));
        }
    }
    Err(Error::mount(format!(
        "the backend {backend} does not stay mounted"
    )))
}

/// Opens the root of the recorded mount. Returns none if another mount is on its target by now.
fn open_root(session: &Session, record: &Record) -> Result<Option<OwnedFd>> {
    let path = PathBuf::from(&record.target);
    let (id, unique) = (record.mount_id, record.unique_id);
    let open = move || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let mounted = mount_id(&root, OsStr::new(""))?;
        Ok(mounted.matches(id, unique).then_some(root))
    };
    let opened: std::result::Result<_, rustix::io::Errno> =
        session
            .host
            .run_within("opening the backend", OPEN_LIMIT, open)?;
    opened.map_err(|e| Error::mount(format!("cannot open {}", record.target)).because(e))
}

/// Unmounts a backend. Succeeds if it is not mounted.
///
/// # Errors
/// A call uses it, or the unmount fails.
pub fn release(session: &Session, backend: &str) -> Result<()> {
    let target = target(backend);
    let Some(record) = session.ledger.get(&target)? else {
        return Ok(());
    };
    // A service such as rpc.statd is stopped in the client root where it was started.
    if let Some(root) = record.root
        && session.runs_in == RunsIn::Container
    {
        enter::exec_in_client_root(&session.host, &root)?;
    }
    unmount::umount(session, &target, UnmountMode::default())
}
