//! Where a dead mount is bound: what is in its place now gets there, in the same way.
//!
//! A bind is a mount of its own, in a container's namespace or elsewhere on the host (kubelet's `subPath`), which nothing
//! that happens to the mount itself reaches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree,
};

use crate::error::{Cause, Error, Result, show};
use crate::host::mountinfo::{self, Entry};
use crate::host::namespace;
use crate::host::target::mount_id;
use crate::mount::direct::attributes;
use crate::options::Options;
use crate::repair::replace::{BENEATH, Dead, detach_at};
use crate::state::{Record, Session};
use crate::sys::{self, MountAttributes};

/// How long all the work in one container may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Replaces every bind of a mount that was replaced, except in our own namespace. What fails is logged: the mount itself
/// is repaired all the same.
pub fn replace(session: &Session, dead: &Dead, record: &Record) {
    let all = match namespaces(session, &dead.entry.device) {
        Ok(all) => all,
        Err(error) => return tracing::warn!("{error}"),
    };
    for (process, (file, entries)) in all {
        for entry in entries {
            let (target, place) = (&record.target, show(&entry.target));
            match replace_one(session, dead, record, &file, &entry) {
                Ok(()) => tracing::info!(target, process, place, "repaired where it is bound"),
                Err(error) => {
                    tracing::warn!(
                        target,
                        process,
                        place,
                        "still bound to the dead mount: {error}"
                    );
                }
            }
        }
    }
}

/// The namespaces with a mount of this device, by a process that is in each.
fn namespaces(session: &Session, device: &str) -> Result<BTreeMap<i32, (File, Vec<Entry>)>> {
    let proc = session.host.proc_file("..").unwrap_or("/proc/1/..".into());
    let fail = |e| Error::system("cannot look for containers").because(e);
    let mut seen = vec![fs::read_link("/proc/self/ns/mnt").map_err(fail)?];
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&proc).map_err(fail)?.flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended.
        let namespace = entry.path().join("ns/mnt");
        let Ok(link) = fs::read_link(&namespace) else {
            continue;
        };
        if seen.contains(&link) {
            continue;
        }
        seen.push(link);
        let table = mountinfo::read_file(entry.path().join("mountinfo")).unwrap_or_default();
        let mounts: Vec<Entry> = table.into_iter().filter(|m| m.device == device).collect();
        if !mounts.is_empty()
            && let Ok(file) = File::open(&namespace)
        {
            found.insert(process, (file, mounts));
        }
    }
    Ok(found)
}

fn replace_one(
    session: &Session,
    dead: &Dead,
    record: &Record,
    namespace: &File,
    entry: &Entry,
) -> Result<()> {
    let fail =
        |why: Cause| Error::mount(format!("cannot replace {}", show(&entry.target))).because(why);
    let below = entry.root.strip_prefix(&dead.entry.root);
    let below = below.map_err(|_| fail("it shows what the mount of the host does not".into()))?;
    let (target, below) = (PathBuf::from(&record.target), below.to_owned());
    let clone = move || clone_of(&target, &below);
    let new = session.host.run("cloning the new mount", clone)?;
    let new = new.map_err(|e| fail(e.into()))?;
    let options = Options::parse([entry.attributes.as_str()])?;
    // As the container had them; those for times are the daemon's business.
    let kept = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    let set = attributes(&options).0 & kept;
    let what = MountAttributes {
        set: set.bits().into(),
        clear: (kept - set).bits().into(),
        propagation: match (entry.peers, entry.master) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(MountPropagationFlags::DOWNSTREAM),
            (None, None) => Some(MountPropagationFlags::PRIVATE),
        },
        recursive: false,
    };
    sys::mount_setattr(&new, what).map_err(|e| fail(e.into()))?;
    let namespace = namespace.try_clone().map_err(|e| fail(e.into()))?;
    let (entry, (done, answer)) = (entry.clone(), channel());
    let work = move || {
        let worked = namespace::enter(&namespace)
            .map_err(Cause::from)
            .and_then(|()| put(&new, &entry));
        // Nobody listens any more if it took too long.
        let _ = done.send(worked);
    };
    // It belongs to the container from now on, and ends.
    std::thread::Builder::new()
        .spawn(work)
        .map_err(|e| fail(e.into()))?;
    match answer.recv_timeout(LIMIT) {
        Ok(worked) => worked.map_err(fail),
        Err(_) => Err(fail("it took too long".into())),
    }
}

/// A clone of what is below a mount of the host. What lies there is somebody else's: no link is followed.
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

/// Puts a clone in the place of a dead mount of the calling thread's namespace.
fn put(new: &OwnedFd, dead: &Entry) -> std::result::Result<(), Cause> {
    let (Some(parent), Some(name)) = (dead.target.parent(), dead.target.file_name()) else {
        return Err("it is the container's root".into());
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
        // The shortest swap.
        Err(Errno::INVAL) => detach_at(&parent, name)
            .and_then(|()| move_mount(new, "", &parent, name, from))
            .map_err(Cause::from),
        Err(error) => Err(error.into()),
    }
}
