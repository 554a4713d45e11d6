//! Detached mounts: no path leads to them while they are made and changed, then they are attached
//! to a target in one step (open_tree(2), move_mount(2); Linux 5.2).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::fs::{chownat, fchmod, open, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::mount::{mount_change, move_mount, open_tree};

use crate::error::{Error, Result, errno_text, show};
use crate::host::mount_id::{MountId, mount_id};
use crate::host::target::Pinned;
use crate::host::{Host, accounts, caller};
use crate::options::Options;
use crate::sys;

/// Detached mount. The kernel removes the mount if it is dropped without being attached.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// Mount ids, which stay the same when the mount is attached.
    pub mount: MountId,
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Directory of the host on which a mount is attached in a namespace that nobody else sees.
pub(crate) const PRIVATE_TARGET: &str = "/run/spc";

impl Detached {
    /// Takes over a detached mount by its file descriptor.
    ///
    /// # Errors
    /// The mount ids cannot be read.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let mount = mount_id(&fd, OsStr::new(""))
            .map_err(|e| Error::system("cannot read the id of a detached mount").because(e))?;
        Ok(Self { fd, mount })
    }

    /// Clones the mount at a path in the calling thread's mount namespace.
    ///
    /// # Errors
    /// open_tree(2) fails.
    pub fn clone_of(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = open_tree(CWD, path, flags).map_err(|e| {
            Error::system(format!("cannot clone the mount at {}", path.display())).because(e)
        })?;
        Self::from_fd(fd)
    }

    /// Attaches the mount to a pinned target. Must run in the host's mount namespace.
    ///
    /// # Errors
    /// move_mount(2) fails.
    pub fn attach(self, target: &Pinned) -> Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.fd, "", &target.dir, "", flags).map_err(|e| {
            Error::mount(format!("cannot attach the mount to {}", show(&target.path))).because(e)
        })
    }

    /// Attaches the mount to a directory in the calling thread's mount namespace.
    ///
    /// # Errors
    /// move_mount(2) fails.
    pub fn attach_at(self, directory: &Path) -> Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.fd, "", CWD, directory, flags).map_err(|e| {
            Error::system(format!("cannot attach a mount to {}", directory.display())).because(e)
        })
    }

    /// Returns the mount of a directory of this mount. Must run in the host's mount namespace.
    fn subdirectory(self, directory: &str) -> Result<Self> {
        let in_private = || -> std::result::Result<OwnedFd, Errno> {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&self.fd, "", CWD, PRIVATE_TARGET, flags)?;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let root = open(PRIVATE_TARGET, flags | OFlags::DIRECTORY, Mode::empty())?;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let found = openat2(&root, directory, flags, Mode::empty(), resolve)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            open_tree(&found, "", flags | OpenTreeFlags::AT_EMPTY_PATH)
        };
        let found = in_private_namespace(in_private).and_then(|found| found);
        Self::from_fd(found.map_err(|e| {
            Error::mount(format!(
                "cannot mount the directory {directory} of the source"
            ))
            .because(e)
            .hint("X-mount.subdir= names a directory of the file system, which must exist")
        })?)
    }

    /// Applies changes in the host's mount namespace, within a time limit.
    ///
    /// # Errors
    /// The kernel or the file system refuses a change, or does not answer in time.
    pub fn adjusted_on(self, host: &Host, changes: &Adjustments, limit: Duration) -> Result<Self> {
        if changes.is_empty() {
            return Ok(self);
        }
        let changes = changes.clone();
        host.run_within("changing the new mount", limit, move || {
            self.adjusted(&changes)
        })?
    }

    /// Applies changes to the mount and to its root directory. Must run in the host's mount
    /// namespace.
    ///
    /// # Errors
    /// The kernel or the file system refuses a change.
    pub fn adjusted(mut self, adjustments: &Adjustments) -> Result<Self> {
        if let Some(directory) = &adjustments.subdir {
            self = self.subdirectory(directory)?;
        }
        let refused = |option: &str, e: Errno| {
            Error::mount(format!("cannot apply X-mount.{option}="))
                .because(e)
                .hint("the server or a read-only file system may refuse it to this host's root; leave the option out")
        };
        let (owner, group) = (adjustments.owner, adjustments.group);
        if owner.is_some() || group.is_some() {
            let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
            chownat(&self.fd, "", owner, group, AtFlags::EMPTY_PATH)
                .map_err(|e| refused("owner", e))?;
        }
        if let Some(mode) = adjustments.mode {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(&self.fd, ".", flags, Mode::empty())
                .and_then(|root| fchmod(root, Mode::from_raw_mode(mode)))
                .map_err(|e| refused("mode", e))?;
        }
        if let Some(namespace) = &adjustments.idmap {
            sys::map_ids(&self.fd, namespace).map_err(|e| {
                Error::mount("cannot apply X-mount.idmap=")
                    .because(e)
                    .hint("this file system, or this kernel, has no mapped mounts (mount_setattr(2)); leave the option out")
            })?;
        }
        Ok(self)
    }
}

/// Runs a job in a copy of the calling thread's mount namespace, which ends with the job.
pub(crate) fn in_private_namespace<T: Send>(
    job: impl FnOnce() -> T + Send,
) -> std::result::Result<T, Errno> {
    std::thread::scope(|scope| {
        let work = || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
                .map_err(|e| Errno::from_raw_os_error(e as i32))?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private)?;
            Ok(job())
        };
        // A panic of the job is one of this thread.
        scope.spawn(work).join().unwrap_or(Err(Errno::CANCELED))
    })
}

/// Changes to a mount that mount(8)'s options `X-mount.…` ask for.
#[derive(Clone, Debug, Default)]
pub struct Adjustments {
    /// Directory of the file system to mount in place of its root.
    subdir: Option<String>,
    /// Owner of the root directory.
    owner: Option<u32>,
    /// Group of the root directory.
    group: Option<u32>,
    /// Permissions of the root directory.
    mode: Option<u32>,
    /// User namespace whose id mapping the mount gets.
    idmap: Option<Arc<OwnedFd>>,
}

impl Adjustments {
    /// Reads the options, and looks up names of users and groups on the host.
    ///
    /// # Errors
    /// A value is invalid, or the host has no such user or group.
    pub fn from_options(options: &Options, host: &Host) -> Result<Self> {
        let value = |name: &str| options.value(&format!("X-mount.{name}"));
        let owner = value("owner").map(|name| accounts::uid(host, name));
        let group = value("group").map(|name| accounts::gid(host, name));
        let mode = value("mode").map(|mode| match u32::from_str_radix(mode, 8) {
            Ok(number) if number <= 0o7777 => Ok(number),
            _ => Err(Error::usage(format!(
                "bad option X-mount.mode: not an octal mode: {mode}"
            ))),
        });
        Ok(Self {
            subdir: value("subdir").map(str::to_owned),
            owner: owner.transpose()?,
            group: group.transpose()?,
            mode: mode.transpose()?,
            idmap: value("idmap").map(user_namespace).transpose()?,
        })
    }

    /// Returns whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            subdir,
            owner,
            group,
            mode,
            idmap,
        } = self;
        subdir.is_none() && owner.or(*group).or(*mode).is_none() && idmap.is_none()
    }
}

/// Opens or makes the user namespace of an option `X-mount.idmap=`: the path of a namespace, or
/// mappings `[TYPE:]MOUNT:HOST:RANGE` with spaces between them (mount(8)).
fn user_namespace(value: &str) -> Result<Arc<OwnedFd>> {
    let fail = |e: std::io::Error| {
        Error::system("cannot use X-mount.idmap=").because(errno_text(e)).hint(
            "it names a user namespace, /proc/PID/ns/user, or mappings, 0:1000:10; for mappings the container needs --cap-add=SETUID --cap-add=SETGID",
        )
    };
    if value.starts_with('/') {
        let file = caller::open_named(Path::new(value)).map_err(fail)?;
        return Ok(Arc::new(file.into()));
    }
    let (uids, gids) = id_maps(value).ok_or_else(|| {
        Error::usage(format!("bad option X-mount.idmap: {value}"))
            .hint("write mappings as [u:|g:|b:]MOUNT:HOST:RANGE, with spaces between them")
    })?;
    Ok(Arc::new(sys::user_namespace(&uids, &gids).map_err(fail)?))
}

/// Returns the lines of `uid_map` and `gid_map` for the mappings of `X-mount.idmap=`.
fn id_maps(value: &str) -> Option<(String, String)> {
    let (mut uids, mut gids) = (String::new(), String::new());
    for mapping in value.split_ascii_whitespace() {
        let (kind, ids) = match mapping.split_once(':')? {
            ("b" | "both", ids) => ("b", ids),
            ("u" | "uid", ids) => ("u", ids),
            ("g" | "gid", ids) => ("g", ids),
            _ => ("b", mapping),
        };
        let ids: Vec<u32> = ids
            .split(':')
            .map(|id| id.parse().ok())
            .collect::<Option<_>>()?;
        let [mount, host, range] = ids[..] else {
            return None;
        };
        let line = format!("{mount} {host} {range}\n");
        if kind != "g" {
            uids.push_str(&line);
        }
        if kind != "u" {
            gids.push_str(&line);
        }
    }
    Some((uids, gids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_ids_are_those_of_mount() {
        let both = "0 1000 10\n".to_owned();
        assert_eq!(id_maps("0:1000:10"), Some((both.clone(), both.clone())));
        let split = id_maps("u:0:1000:10 g:0:1000:10  b:20:20:1").unwrap();
        assert_eq!(split.0, "0 1000 10\n20 20 1\n");
        assert_eq!(split.0, split.1);
        for bad in ["x", "0:1", "0:1:2:3", "q:0:1:2", "0:-1:2"] {
            assert_eq!(id_maps(bad), None, "{bad}");
        }
    }
}
