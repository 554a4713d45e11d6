//! Client roots: trees with the client programs, on the host, a directory for each version of the image.
//!
//! Why copies, and not the container's own root: an engine deletes that with the container, and its layers with the
//! image, while a daemon still loads libraries and translators from them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, open};

use crate::client::{image, namespace};
use crate::error::{Cause, Error, Result};
use crate::host::runs_in::{NAME_FILE, RunsIn, current};
use crate::host::target::mount_id;
use crate::host::{Host, Settings, caller, file_lock};
use crate::state::{Record, Session};

/// On the host: everything that is kept beyond a reboot.
pub const HOME: &str = "/var/lib/spc";

/// On the host: a directory for each client root.
pub const ROOTS: &str = "/var/lib/spc/roots";

/// On the host: a link to the client root that the host's own commands use, made by `spc install`.
pub const CURRENT: &str = "/var/lib/spc/current";

/// How long copying or removing a tree may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What is not copied: the kernel's file systems, what belongs to one run, and what is made anew.
const NOT_COPIED: [&str; 7] = ["dev", "lost+found", "proc", "run", "spc", "sys", "tmp"];

/// What is made anew, with its mode.
const MADE: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("host", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("spc", 0o755),
    ("spc/targets", 0o700),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// The right to use a client root before any record names it, until dropped.
#[derive(Debug)]
pub struct InUse {
    file: File,
}

impl InUse {
    /// The descriptor that holds it.
    pub fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// The path of a client root on the host.
pub fn path(id: &str) -> PathBuf {
    Path::new(ROOTS).join(id)
}

/// The client root that belongs to this process: its own, that of its container's image, or the installed one.
///
/// # Errors
/// Nothing is installed, or the image cannot be read.
pub fn own() -> Result<String> {
    match current() {
        RunsIn::ClientRoot(id) => Ok(id),
        RunsIn::Container => image::name()
            .map_err(|e| Error::system("cannot tell the version of the image: /usr").because(e)),
        RunsIn::Host => installed(Path::new(CURRENT)).ok_or_else(|| {
            Error::system("spc is not installed on this host")
                .because(format!("{CURRENT} is missing"))
                .hint("run `spc install` in the container")
        }),
    }
}

/// The client root that a link, such as [`CURRENT`], leads to.
pub fn installed(link: &Path) -> Option<String> {
    let name = fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned();
    Some(name)
}

/// Makes sure that a client root is on the host; that of our own image is copied there if it is not.
///
/// # Errors
/// It is not there and not ours, or the host has no room for it.
pub fn extract_if_missing(host: &Host, id: &str) -> Result<InUse> {
    let held = lock(host, FlockOperation::NonBlockingLockShared)?;
    let named = path(id).join(NAME_FILE.trim_start_matches('/'));
    let is_there = move || named.exists();
    if host.run("looking for the client root", is_there.clone())? {
        return Ok(held);
    }
    // Only our own image can be copied, and only under its own name.
    if current() != RunsIn::Container || own()? != id {
        return Err(
            Error::system(format!("the client root {id} is gone from the host"))
                .because(format!("{} is missing", path(id).display()))
                .hint("run `spc install` in the container again"),
        );
    }
    drop(held);
    let held = lock(host, FlockOperation::NonBlockingLockExclusive)?;
    if !host.run("looking for the client root", is_there)? {
        copy(host, id)?;
    }
    flock(&held.file, FlockOperation::LockShared)
        .map_err(|e| Error::system(format!("cannot lock {ROOTS}/lock on the host")).because(e))?;
    Ok(held)
}

/// Takes the lock of all client roots: shared by those who use one, exclusive for who makes or removes one.
fn lock(host: &Host, how: FlockOperation) -> Result<InUse> {
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot open {ROOTS}/lock on the host"))
            .because(e)
            .hint("client programs are kept there; to have them run in the container, and the mount end with it, add -o x-spc.container")
    };
    let open = || file_lock::open(Path::new(ROOTS), 0o755);
    let file = host.run("opening the client roots", open)?.map_err(fail)?;
    file_lock::acquire(&file, how, LIMIT).map_err(fail)?;
    Ok(InUse { file })
}

/// Copies our own root to the host, whole or not at all.
fn copy(host: &Host, id: &str) -> Result<()> {
    let started = Instant::now();
    let whole = path(id);
    let new = Path::new(ROOTS).join(format!(".{id}.new"));
    let fail = |cause: Cause| {
        Error::system(format!("cannot copy the client programs to the host: {}", whole.display()))
            .because(cause)
            .hint("it takes 180 MB; to have them run in the container, and the mount end with it, add -o x-spc.container")
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
    tracing::info!(root = %whole.display(), "copying the client programs to the host, once for each version");
    let copied = fill(&directory, host.settings(), id);
    let result = copied.map_err(|e| fail(e.into())).and_then(|()| {
        let (new, whole) = (new.clone(), whole.clone());
        let name = move || -> std::io::Result<()> {
            rustix::fs::syncfs(&directory)?;
            fs::rename(&new, &whole)
        };
        host.run_within("copying the client programs", LIMIT, name)?
            .map_err(|e| fail(e.into()))
    });
    if result.is_err() {
        // What is left of it is removed before the next try as well.
        let _ = host.run_within("removing a copy", LIMIT, move || remove_tree(&new));
    } else {
        tracing::info!(
            root = id,
            "copied in {:.1} s",
            started.elapsed().as_secs_f32()
        );
    }
    result
}

/// Fills a directory with the tree of this container.
fn fill(directory: &OwnedFd, settings: &Settings, id: &str) -> std::io::Result<()> {
    let there = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let (root, hosts) = (mount_id(CWD, "/".as_ref())?.id, settings.hosts());
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let path = entry.path();
        let kept =
            !NOT_COPIED.iter().any(|other| entry.file_name() == *other) && !hosts.contains(&path);
        // Volumes of the container are none of its programs.
        if kept && mount_id(CWD, path.as_os_str()).is_ok_and(|mount| mount.id == root) {
            copy_tree(&path, &there.join(entry.file_name()), root)?;
        }
    }
    for (name, mode) in MADE {
        let made = there.join(name);
        fs::create_dir(&made)?;
        fs::set_permissions(&made, Permissions::from_mode(mode))?;
    }
    File::create(there.join("spc/client"))?.write_all(id.as_bytes())
}

/// Copies a file, or a directory with what is below it in the same mount. Owners are left out: setting them would take a
/// capability that mounting does not. A directory of another user that cannot be read stays empty.
fn copy_tree(from: &Path, to: &Path, mount: u64) -> std::io::Result<()> {
    let data = fs::symlink_metadata(from)?;
    let kind = data.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_file() {
        return fs::copy(from, to).map(drop);
    }
    if !kind.is_dir() {
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
        if mount_id(CWD, path.as_os_str()).is_ok_and(|there| there.id == mount) {
            copy_tree(&path, &to.join(entry.file_name()), mount)?;
        }
    }
    fs::set_permissions(to, data.permissions())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The client roots that are on the host.
///
/// # Errors
/// The directory cannot be read.
pub fn all(host: &Host) -> Result<Vec<String>> {
    let read = host.run(
        "reading the client roots",
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

/// Removes the client roots that nothing needs: not installed, not one of these, named by no record, and with no
/// process in their namespace but the keeper. True if one was removed.
///
/// # Errors
/// The ledger cannot be read, or a tree cannot be removed.
pub fn collect_garbage(session: &Session, keep: &[String]) -> Result<bool> {
    let host: &Arc<Host> = &session.host;
    let ids = all(host)?;
    if ids.iter().all(|id| keep.contains(id)) {
        return Ok(false);
    }
    let Ok(_alone) = try_alone(host) else {
        return Ok(false);
    };
    let current = host.run("looking for the installed client root", || {
        installed(Path::new(CURRENT))
    })?;
    let mut removed = false;
    for id in ids {
        let named = |record: &Record| record.root.as_ref() == Some(&id);
        if keep.contains(&id) || current.as_ref() == Some(&id) || session.ledger.has(named)? {
            continue;
        }
        let half_made = id.starts_with('.');
        if !half_made && !namespace::end(host, &id)? {
            continue;
        }
        let tree = path(&id);
        let gone = Path::new(ROOTS).join(format!(".{}.old", id.trim_start_matches('.')));
        let remove = move || -> std::io::Result<()> {
            if tree != gone {
                remove_tree(&gone)?;
                fs::rename(&tree, &gone)?;
            }
            remove_tree(&gone)
        };
        host.run_within("removing a client root", LIMIT, remove)?
            .map_err(|e| {
                Error::system(format!("cannot remove the client root {id} on the host")).because(e)
            })?;
        tracing::info!(root = %id, "removed; nothing uses it any more");
        removed = true;
    }
    Ok(removed)
}

/// The lock of all client roots, if nobody else holds it.
fn try_alone(host: &Host) -> Result<File> {
    let opened = host.run("opening the client roots", || {
        OpenOptions::new().write(true).open(format!("{ROOTS}/lock"))
    })?;
    let busy = |e: std::io::Error| Error::system("client roots are in use").because(e);
    let file = opened.map_err(busy)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| busy(e.into()))?;
    Ok(file)
}

/// Removes what the end of a mount has left unused, where no `spc serve` does it. What cannot be removed is logged: the
/// mount is gone all the same.
pub fn release(session: &Session) {
    if let RunsIn::ClientRoot(own) = &session.runs_in {
        caller::settle();
        if let Err(error) = collect_garbage(session, std::slice::from_ref(own)) {
            tracing::warn!("{error}");
        }
    }
}
