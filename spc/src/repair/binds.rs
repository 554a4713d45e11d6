//! Repairs the bind mounts of a dead mount: each gets a clone of the new mount.
//!
//! A bind mount is a mount of its own, in a container's namespace or elsewhere on the host
//! (kubelet's `subPath`). Replacing the original mount does not change it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::error::{Cause, Error, Result, show};
use crate::host::mount_id::mount_id;
use crate::host::mountinfo::{self, Entry};
use crate::host::namespace;
use crate::options::Options;
use crate::process::procfs::look_at_each;
use crate::repair::replace::{BENEATH, DeadMount, detach_at};
use crate::state::{Record, Session};
use crate::sys::{self, MountAttributes};

/// Time limit for the search for mount namespaces, which other users' processes can delay.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);

/// Time limit for the replacement of one bind mount.
const LIMIT: Duration = Duration::from_secs(5);

/// Replaces every bind mount of a repaired mount, except in spc's own namespace. Failures are only
/// logged, because the mount itself is repaired.
pub fn replace(session: &Session, dead: &DeadMount, record: &Record) {
    let found = match namespaces(session, &dead.entry.device) {
        Ok(found) => found,
        Err(error) => return tracing::warn!("{error}"),
    };
    for (process, (file, entries)) in found {
        for entry in entries {
            let (target, bind) = (&record.target, show(&entry.target));
            match replace_one(session, dead, record, &file, &entry) {
                Ok(()) => tracing::info!(target, process, place = bind, "repaired a bind mount"),
                Err(error) => {
                    tracing::warn!(
                        target,
                        process,
                        place = bind,
                        "a bind mount still shows the dead mount: {error}"
                    );
                }
            }
        }
    }
}

/// Returns the mount namespaces that have mounts of this device: a process in each namespace, the
/// namespace, and the mounts.
///
/// Namespaces that another user namespace owns are left out. Any user can make one, with binds
/// whose flags the kernel has locked, and a replaced bind would lose the locks.
fn namespaces(session: &Session, device: &str) -> Result<BTreeMap<i32, (File, Vec<Entry>)>> {
    let procfs = session.host.proc_file("..").unwrap_or("/proc/1/..".into());
    let fail = |e| Error::system("cannot look for containers").because(e);
    let own = fs::metadata("/proc/self/ns/mnt").map_err(fail)?.ino();
    let (_, host) = namespace::find(session.host.settings())?;
    let host_owner = owner(&host).map_err(fail)?;
    let names = fs::read_dir(&procfs).map_err(fail)?.flatten();
    let ids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut ids: Vec<i32> = ids.collect();
    // Processes of users may use up the time. Most containers have one of root.
    ids.sort_by_cached_key(|process| {
        let process = fs::metadata(procfs.join(process.to_string()));
        process.is_ok_and(|process| process.uid() != 0)
    });
    let (in_proc, mut others) = (procfs.clone(), BTreeMap::new());
    let open = move |process: i32| {
        // The process may have ended.
        let file = File::open(in_proc.join(format!("{process}/ns/mnt"))).ok()?;
        // A user may have more namespaces than this process can have open files, so they are closed
        // at once.
        if owner(&file).ok() != Some(host_owner) {
            tracing::debug!(
                process,
                "another user namespace owns the mounts of a process"
            );
            return None;
        }
        Some((file.metadata().ok()?.ino(), file))
    };
    look_at_each(&ids, SEARCH_LIMIT, open, |process, opened| {
        if let Some((id, file)) = opened.filter(|(id, _)| *id != own) {
            others.entry(id).or_insert((process, file));
        }
    })
    .map_err(fail)?;
    let mut found = BTreeMap::new();
    for (process, file) in others.into_values() {
        let table = mountinfo::read_file(procfs.join(format!("{process}/mountinfo")));
        let table = table.unwrap_or_default();
        let mounts: Vec<Entry> = table.into_iter().filter(|m| m.device == device).collect();
        if !mounts.is_empty() {
            found.insert(process, (file, mounts));
        }
    }
    Ok(found)
}

/// Returns the inode number of the user namespace that owns a mount namespace.
fn owner(namespace: &File) -> std::io::Result<u64> {
    let owner = File::from(sys::owner_of_namespace(namespace)?);
    Ok(owner.metadata()?.ino())
}

/// Replaces one bind mount in the namespace where it is.
fn replace_one(
    session: &Session,
    dead: &DeadMount,
    record: &Record,
    namespace: &File,
    entry: &Entry,
) -> Result<()> {
    let fail =
        |why: Cause| Error::mount(format!("cannot replace {}", show(&entry.target))).because(why);
    let below = entry.root.strip_prefix(&dead.entry.root);
    let below = below.map_err(|_| {
        fail("it shows a directory that the mount on the host does not contain".into())
    })?;
    let (target, below) = (PathBuf::from(&record.target), below.to_owned());
    let clone = move || clone_of(&target, &below);
    let new = session.host.run("cloning the new mount", clone)?;
    let new = new.map_err(|e| fail(e.into()))?;
    let options = Options::parse([entry.attributes.as_str()])?;
    // The flags of the bind mount, except those for access times, which the daemon handles.
    let kept = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NOSYMFOLLOW;
    let set = options.attributes().set & kept;
    let mount_attributes = MountAttributes {
        set,
        clear: kept & !set,
        propagation: None,
        recursive: false,
    };
    sys::mount_setattr(&new, mount_attributes).map_err(|e| fail(e.into()))?;
    for propagation in propagation(entry, dead.entry.peers) {
        let attributes = MountAttributes {
            propagation: Some(*propagation),
            ..MountAttributes::default()
        };
        sys::mount_setattr(&new, attributes).map_err(|e| fail(e.into()))?;
    }
    let namespace = namespace.try_clone().map_err(|e| fail(e.into()))?;
    let (entry, (sender, receiver)) = (entry.clone(), channel());
    let work = move || {
        let result = namespace::enter(&namespace)
            .map_err(Cause::from)
            .and_then(|()| put(&new, &entry));
        // The receiver is gone after the time limit.
        let _ = sender.send(result);
    };
    // A thread that has entered the container's namespace cannot be used for anything else.
    std::thread::Builder::new()
        .spawn(work)
        .map_err(|e| fail(e.into()))?;
    match receiver.recv_timeout(LIMIT) {
        Ok(result) => result.map_err(fail),
        Err(_) => Err(fail(
            format!("not done within {} s", LIMIT.as_secs()).into(),
        )),
    }
}

/// Returns the changes of propagation that give a clone of the new mount, which is in the new
/// mount's peer group, the propagation of a bind of the dead one. `dead` is the dead mount's group.
///
/// A bind that was shared, but not with the host, gets a peer group of its own: mounts in it never
/// appear on the host.
fn propagation(bind: &Entry, dead: Option<u64>) -> &'static [MountPropagationFlags] {
    const PRIVATE: MountPropagationFlags = MountPropagationFlags::PRIVATE;
    const SLAVE: MountPropagationFlags = MountPropagationFlags::DOWNSTREAM;
    const SHARED: MountPropagationFlags = MountPropagationFlags::SHARED;
    match (bind.peers, bind.master) {
        (Some(_), _) if bind.peers == dead => &[],
        (Some(_), Some(_)) => &[SLAVE, SHARED],
        (Some(_), None) => &[PRIVATE, SHARED],
        (None, Some(_)) => &[SLAVE],
        (None, None) => &[PRIVATE],
    }
}

/// Clones the tree at a path below a mount of the host. No symlink is followed, because other users
/// can write there.
fn clone_of(mount: &Path, below: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat2(CWD, mount, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let found = if below.as_os_str().is_empty() {
        root
    } else {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(&root, below, flags, Mode::empty(), inside)?
    };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::from_bits_retain(rustix::fs::AtFlags::EMPTY_PATH.bits());
    open_tree(&found, "", clone)
}

/// Replaces a dead mount in the namespace of the calling thread by the clone.
fn put(new: &OwnedFd, dead: &Entry) -> std::result::Result<(), Cause> {
    let (Some(parent), Some(name)) = (dead.target.parent(), dead.target.file_name()) else {
        return Err("it is the root of the container".into());
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let links = ResolveFlags::NO_SYMLINKS;
    let parent = openat2(CWD, parent, flags, Mode::empty(), links).map_err(Cause::from)?;
    if !mount_id(&parent, name).is_ok_and(|top| top.id == dead.id) {
        return Err("another mount covers it".into());
    }
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    match move_mount(new, "", &parent, name, from | BENEATH) {
        Ok(()) => detach_at(&parent, name).map_err(Cause::from),
        // Linux before 6.5: detach and attach in immediate succession.
        Err(Errno::INVAL) => detach_at(&parent, name)
            .and_then(|()| move_mount(new, "", &parent, name, from))
            .map_err(Cause::from),
        Err(error) => Err(error.into()),
    }
}
