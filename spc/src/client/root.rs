//! Client root file systems (client roots): directories on the host with a copy of the client
//! programs, one for each version of the image.
//!
//! The container's own root cannot be used. A container engine deletes it with the container, and
//! its layers with the image, while daemons still load libraries and GlusterFS translators from it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, open};

use crate::client::{image, namespace};
use crate::error::{Cause, Error, Result};
use crate::host::file_lock::{self, LockMode};
use crate::host::mount_id::mount_id;
use crate::host::runs_in::{NAME_FILE, RunsIn, current};
use crate::host::{Host, Settings, caller, confinement};
use crate::state::{Record, Session};

/// Directory on the host for everything that spc keeps across reboots.
pub const HOME: &str = "/var/lib/spc";

/// Directory on the host that contains the client roots.
pub const ROOTS: &str = "/var/lib/spc/roots";

/// Link on the host to the client root that the host's own commands use, created by `spc install`.
pub const CURRENT: &str = "/var/lib/spc/current";

/// Limit for copying or removing a client root, and for waiting for the lock.
const LIMIT: Duration = Duration::from_secs(120);

/// Directories of `/` that are not copied: kernel file systems, temporary files, and directories of
/// [`CREATED`].
const NOT_COPIED: [&str; 7] = ["dev", "lost+found", "proc", "run", "spc", "sys", "tmp"];

/// Directories that are not copied, because no client program reads documents or the state of the
/// package manager. They contain a third of all files.
const UNUSED: [&str; 3] = ["/usr/share/doc", "/var/lib/apt", "/var/lib/dpkg"];

/// Directories that are created empty in a client root, with their modes.
const CREATED: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("host", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("spc", 0o755),
    ("spc/targets", 0o700),
    ("sys", 0o555),
    ("tmp", 0o755),
];

/// Mode bits that are copied. Without the others, users of the host other than root cannot run
/// set-user-ID programs of the image or write to its directories.
const COPIED_MODE: u32 = 0o755;

/// Lock of all client roots, released when dropped.
///
/// A shared lock keeps [`collect_garbage`] from removing a client root that no record names yet.
#[derive(Debug)]
pub struct RootLock {
    file: File,
}

impl AsRawFd for RootLock {
    /// Returns the file descriptor that holds the lock, for a process that inherits it.
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Returns the path of a client root on the host.
pub fn path(id: &str) -> PathBuf {
    Path::new(ROOTS).join(id)
}

/// Returns the id of the client root that mounts of this process use.
///
/// A process in a client root uses that one, in a container the one of its image, on the host the
/// installed one.
///
/// # Errors
/// Nothing is installed on the host, or `/usr` of the image cannot be read.
pub fn own_id() -> Result<String> {
    match current() {
        RunsIn::ClientRoot(id) => Ok(id),
        RunsIn::Container => image::id().map_err(|e| {
            Error::system("cannot determine the version of the image: /usr").because(e)
        }),
        RunsIn::Host => linked_id(Path::new(CURRENT)).ok_or_else(|| {
            let read = fs::read_link(CURRENT).err();
            match read.filter(|e| e.kind() == ErrorKind::PermissionDenied) {
                Some(error) => Error::system(format!("cannot read {CURRENT}"))
                    .because(error)
                    .hint(confinement::LABEL_HINT),
                None => Error::system("spc is not installed on this host")
                    .because(format!("{CURRENT} is missing"))
                    .hint("run `spc install` in the container"),
            }
        }),
    }
}

/// Returns the id of the client root that a link such as [`CURRENT`] leads to.
pub fn linked_id(link: &Path) -> Option<String> {
    let name = fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned();
    Some(name)
}

/// Copies the client root of this container's image to the host if it is missing, and returns the
/// shared lock.
///
/// # Errors
/// The client root is missing and belongs to another image, it cannot be copied, or the lock is
/// held for 120 s.
pub fn extract_if_missing(host: &Host, id: &str) -> Result<RootLock> {
    let held = lock(host, LockMode::Shared)?;
    let name_file = path(id).join(NAME_FILE.trim_start_matches('/'));
    let exists = move || name_file.exists();
    if host.run("looking for the client root file system", exists.clone())? {
        return Ok(held);
    }
    // Only the image of this container can be copied, and only as its own id.
    if current() != RunsIn::Container || own_id()? != id {
        return Err(Error::system(format!(
            "the client root file system {id} is missing on the host"
        ))
        .because(format!("{} does not exist", path(id).display()))
        .hint("run `spc install` in the container again"));
    }
    drop(held);
    let held = lock(host, LockMode::Exclusive)?;
    if !host.run("looking for the client root file system", exists)? {
        copy_own_root(host, id)?;
    }
    held.file
        .lock_shared()
        .map_err(|e| Error::system(format!("cannot lock {ROOTS}/lock on the host")).because(e))?;
    Ok(held)
}

/// Takes the lock of all client roots: shared to use one, exclusive to create or remove one.
fn lock(host: &Host, mode: LockMode) -> Result<RootLock> {
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot lock {ROOTS}/lock on the host"))
            .hint(file_lock::hint(
                &e,
                "the client programs are kept there; to run them in the container instead, which \
                 ends the mount with the container, add -o x-spc.container",
            ))
            .because(e)
    };
    let open = || file_lock::open(Path::new(ROOTS), 0o755);
    let file = host
        .run("opening the lock of the client root file systems", open)?
        .map_err(fail)?;
    file_lock::acquire(&file, mode, LIMIT).map_err(fail)?;
    Ok(RootLock { file })
}

/// Copies the container's root directory to the host as client root `id`, completely or not at all.
fn copy_own_root(host: &Host, id: &str) -> Result<()> {
    let started = Instant::now();
    let final_path = path(id);
    let new = Path::new(ROOTS).join(format!(".{id}.new"));
    let fail = |cause: Cause| {
        let path = final_path.display();
        Error::system(format!(
            "cannot copy the client programs to the host: {path}"
        ))
        .because(cause)
        .hint(
            "the copy takes 170 MB; to run the programs in the container instead, which ends \
                 the mount with the container, add -o x-spc.container",
        )
    };
    let directory = {
        let new = new.clone();
        let make = move || -> std::io::Result<OwnedFd> {
            remove_tree(&new)?;
            fs::DirBuilder::new().mode(0o755).create(&new)?;
            Ok(open(
                &new,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        };
        host.run("copying the client programs", make)?
            .map_err(|e| fail(e.into()))?
    };
    tracing::info!(
        root = %final_path.display(),
        "copying the client programs to the host, once for each version of the image"
    );
    let copied = fill(&directory, host.settings(), id);
    let result = copied.map_err(|e| fail(e.into())).and_then(|()| {
        let (new, final_path) = (new.clone(), final_path.clone());
        let rename = move || -> std::io::Result<()> {
            rustix::fs::syncfs(&directory)?;
            fs::rename(&new, &final_path)
        };
        host.run_within("copying the client programs", LIMIT, rename)?
            .map_err(|e| fail(e.into()))
    });
    if result.is_err() {
        // The next attempt removes what is left after an error.
        let _ = host.run_within("removing an incomplete copy", LIMIT, move || {
            remove_tree(&new)
        });
    } else {
        tracing::info!(
            root = id,
            "copied in {:.1} s",
            started.elapsed().as_secs_f32()
        );
    }
    result
}

/// Fills a directory with the files of a client root: those of this container, the directories in
/// [`CREATED`], and the file with its id.
fn fill(directory: &OwnedFd, settings: &Settings, id: &str) -> std::io::Result<()> {
    let to = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let (root, hosts) = (mount_id(CWD, "/".as_ref())?.id, settings.hosts());
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let path = entry.path();
        let is_copied =
            !NOT_COPIED.iter().any(|other| entry.file_name() == *other) && !hosts.contains(&path);
        // Volumes of the container are other mounts, and are not copied.
        if is_copied && mount_id(CWD, path.as_os_str()).is_ok_and(|mount| mount.id == root) {
            copy_tree(&path, &to.join(entry.file_name()), root)?;
        }
    }
    for (name, mode) in CREATED {
        let directory = to.join(name);
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(mode))?;
    }
    File::create(to.join(NAME_FILE.trim_start_matches('/')))?.write_all(id.as_bytes())
}

/// Copies a file, a link, or a directory with all files below it that are in the mount with id
/// `mount`. Other kinds of files are left out.
///
/// Owners are not copied: that needs a capability that mounting does not need. A directory without
/// read permission stays empty.
fn copy_tree(from: &Path, to: &Path, mount: u64) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    let mode = Permissions::from_mode(metadata.permissions().mode() & COPIED_MODE);
    if kind.is_file() {
        fs::copy(from, to)?;
        return fs::set_permissions(to, mode);
    }
    if !kind.is_dir() || UNUSED.iter().any(|unused| from == *unused) {
        return Ok(());
    }
    fs::create_dir(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        entries => Some(entries?),
    };
    for entry in entries.into_iter().flatten() {
        let entry = entry?;
        let path = entry.path();
        if mount_id(CWD, path.as_os_str()).is_ok_and(|found| found.id == mount) {
            copy_tree(&path, &to.join(entry.file_name()), mount)?;
        }
    }
    fs::set_permissions(to, mode)
}

/// Removes a directory with everything in it, if it exists.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns the ids of the client roots on the host, including temporary names that begin with a
/// dot.
///
/// # Errors
/// [`ROOTS`] cannot be read.
pub fn all(host: &Host) -> Result<Vec<String>> {
    let read = host.run(
        "listing the client root file systems",
        || -> std::io::Result<Vec<String>> {
            let entries = match fs::read_dir(ROOTS) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut ids = Vec::new();
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() {
                    ids.push(name);
                }
            }
            Ok(ids)
        },
    )?;
    read.map_err(|e| Error::system(format!("cannot read {ROOTS} on the host")).because(e))
}

/// Removes unused client roots. Returns whether one was removed.
///
/// A client root is in use if it is installed, is in `keep`, a record names it, or its namespace
/// has a process other than the holder. Nothing is removed while another process holds the lock.
///
/// # Errors
/// The ledger cannot be read, or a client root cannot be removed.
pub fn collect_garbage(session: &Session, keep: &[String]) -> Result<bool> {
    let host: &Arc<Host> = &session.host;
    let ids = all(host)?;
    if ids.iter().all(|id| keep.contains(id)) {
        return Ok(false);
    }
    let Ok(_lock) = try_lock_exclusive(host) else {
        return Ok(false);
    };
    let current = host.run("looking for the installed client root file system", || {
        linked_id(Path::new(CURRENT))
    })?;
    let mut removed = false;
    for id in ids {
        let named = |record: &Record| record.root.as_ref() == Some(&id);
        if keep.contains(&id) || current.as_ref() == Some(&id) || session.ledger.has(named)? {
            continue;
        }
        let incomplete = id.starts_with('.');
        if !incomplete && !namespace::end_if_unused(host, &id)? {
            continue;
        }
        remove(host, &id)?;
        tracing::info!(root = %id, "removed an unused client root file system");
        removed = true;
    }
    Ok(removed)
}

/// Removes a client root. It is renamed first, so that an interrupted removal leaves no client root
/// with missing files.
fn remove(host: &Host, id: &str) -> Result<()> {
    let directory = path(id);
    let renamed = Path::new(ROOTS).join(format!(".{}.old", id.trim_start_matches('.')));
    let remove = move || -> std::io::Result<()> {
        if directory != renamed {
            remove_tree(&renamed)?;
            fs::rename(&directory, &renamed)?;
        }
        remove_tree(&renamed)
    };
    host.run_within("removing a client root file system", LIMIT, remove)?
        .map_err(|e| {
            Error::system(format!(
                "cannot remove the client root file system {id} on the host"
            ))
            .because(e)
        })
}

/// Takes the exclusive lock of all client roots without waiting.
fn try_lock_exclusive(host: &Host) -> Result<File> {
    let opened = host.run("opening the lock of the client root file systems", || {
        OpenOptions::new().write(true).open(format!("{ROOTS}/lock"))
    })?;
    let busy = |e: std::io::Error| Error::system("client root file systems are in use").because(e);
    let file = opened.map_err(busy)?;
    file.try_lock().map_err(|e| busy(e.into()))?;
    Ok(file)
}

/// Removes client roots that an unmount left unused, if this process runs in a client root. In a
/// container, `spc serve` removes them. An error is only logged, because the unmount succeeded.
pub fn remove_unused(session: &Session) {
    if let RunsIn::ClientRoot(own_id) = &session.runs_in {
        caller::release_client_root();
        if let Err(error) = collect_garbage(session, std::slice::from_ref(own_id)) {
            tracing::warn!("{error}");
        }
    }
}
