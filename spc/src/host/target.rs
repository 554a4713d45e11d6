//! Targets: the walk from a path to a pinned directory under the host's root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, mkdirat, open, openat,
    readlinkat, statx, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, errno_text, show};
use crate::host::mountinfo;

/// Directories that hide the system when something is mounted over them.
const SYSTEM: [&str; 7] = ["/proc", "/sys", "/dev", "/etc", "/usr", "/run", "/var"];

/// As many symbolic links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

/// `STATX_MNT_ID_UNIQUE`, Linux 6.8; older kernels leave it out of the answer.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Which mount a path is on, and whether it is that mount's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    /// As in mountinfo; used again after the mount is gone.
    pub id: u64,
    /// Never used again; 0 where the kernel does not have it.
    pub unique: u64,
    /// The path is the root of this mount.
    pub is_root: bool,
}

impl MountId {
    /// The same mount as the one with these numbers, going by the unique one where both have it.
    pub fn is(&self, id: u64, unique: u64) -> bool {
        if self.unique != 0 && unique != 0 {
            self.unique == unique
        } else {
            self.id == id
        }
    }
}

/// A directory held in the host's namespace. What was pinned is what is mounted on.
#[derive(Debug)]
pub struct Pinned {
    /// `O_PATH` descriptor of the directory.
    pub dir: OwnedFd,
    /// `O_PATH` descriptor of the directory it is in.
    pub parent: OwnedFd,
    /// Its name there.
    pub name: OsString,
    /// Absolute path on the host without symbolic links.
    pub path: PathBuf,
    /// `st_dev` of it, major and minor.
    pub dev: (u32, u32),
    /// `st_ino` of it.
    pub ino: u64,
    /// The mount it is on.
    pub mount: MountId,
}

/// What the walk may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Make missing directories, with this mode (`x-mount.mkdir`).
    pub mkdir: Option<u32>,
    /// Allow `/etc`, `/usr` and their like.
    pub system: bool,
    /// How many of the last parts must not be symbolic links, whoever made them.
    pub no_symlink_tail: usize,
}

/// A finished walk.
#[derive(Debug)]
pub enum Walk {
    /// The directory is there.
    Pinned(Pinned, Made),
    /// It is not there; the canonical path up to what exists, and what is missing.
    Missing(PathBuf, PathBuf),
}

/// Directories the walk made, outermost first; removed again when dropped, unless kept.
#[derive(Debug, Default)]
pub struct Made(Vec<(OwnedFd, OsString)>);

impl Made {
    /// The mount succeeded: they stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (parent, name) in self.0.drain(..).rev() {
            // Not empty or already gone: then it is no longer ours to remove.
            let _ = unlinkat(&parent, &name, AtFlags::REMOVEDIR);
        }
    }
}

/// The absolute path that a target means on the host: `.` and `..` stay for the walk, and what is
/// below a directory at which the container sees the host's root loses that prefix.
pub fn host_path(target: &Path, cwd: &Path, hosts: &[PathBuf]) -> PathBuf {
    let absolute = cwd.join(target);
    match hosts
        .iter()
        .find_map(|host| absolute.strip_prefix(host).ok())
    {
        Some(rest) => Path::new("/").join(rest),
        None => absolute,
    }
}

struct Level {
    name: OsString,
    dir: OwnedFd,
    /// Nobody but root can replace what is in here.
    trusted: bool,
}

/// Walks to a directory under the calling thread's root; run it on the host's thread.
///
/// # Errors
/// A component is missing where it may not be made, is no directory, or is a symbolic link that
/// somebody other than root made or could replace.
pub fn walk(target: &Path, rules: Rules) -> Result<Walk> {
    let fail = |what: String| {
        Error::mount(format!("bad target {}: {what}", show(target)))
            .hint("look at the path on the host")
    };
    let root = open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| fail(format!("/: {}", errno_text(e))))?;
    let mut levels = vec![Level {
        name: OsString::new(),
        trusted: stat(&root).is_ok_and(|stat| trusted(&stat)),
        dir: root,
    }];
    let mut pending: VecDeque<OsString> = parts(target);
    let mut made = Made::default();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        let Some(level) = levels.last() else { break };
        if name == ".." {
            if levels.len() > 1 {
                levels.pop();
            }
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat(&level.dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => match rules.mkdir {
                None => {
                    pending.push_front(name);
                    let missing = pending.into_iter().collect();
                    return Ok(Walk::Missing(path_of(&levels), missing));
                }
                Some(mode) => {
                    match mkdirat(&level.dir, &name, Mode::from_raw_mode(mode)) {
                        Ok(()) => {
                            let parent = level.dir.try_clone().map_err(|e| fail(errno_text(e)))?;
                            made.0.push((parent, name.clone()));
                        }
                        Err(Errno::EXIST) => {}
                        Err(error) => {
                            let what = show(&path_of(&levels).join(&name));
                            return Err(fail(format!("cannot make {what}: {}", errno_text(error))));
                        }
                    }
                    openat(&level.dir, &name, flags, Mode::empty())
                }
            },
            other => other,
        };
        let here = path_of(&levels).join(&name);
        let found = found.map_err(|e| {
            let error = fail(format!("{}: {}", show(&here), errno_text(e)));
            match e {
                Errno::ACCESS => error.hint("only another user may enter a directory on the way: start the container with --cap-add=DAC_READ_SEARCH"),
                _ => error,
            }
        })?;
        let stat = stat(&found).map_err(|e| fail(format!("{}: {}", show(&here), errno_text(e))))?;
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => {
                let trusted = level.trusted && trusted(&stat);
                levels.push(Level {
                    name,
                    dir: found,
                    trusted,
                });
            }
            FileType::Symlink => {
                links += 1;
                if links > LINKS {
                    return Err(fail(errno_text(Errno::LOOP)));
                }
                // What is still to be walked ends with the target's own last parts.
                if pending.len() < rules.no_symlink_tail {
                    return Err(fail(format!(
                        "{} is a symbolic link, and none is followed there",
                        show(&here)
                    )));
                }
                if !(level.trusted && stat.stx_uid == 0) {
                    return Err(fail(format!(
                        "{} is a symbolic link that a user other than root controls",
                        show(&here)
                    ))
                    .hint("give the path that it leads to, if that is what you mean"));
                }
                let link = readlinkat(&found, "", Vec::new())
                    .map_err(|e| fail(format!("{}: {}", show(&here), errno_text(e))))?;
                let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
                if link.is_absolute() {
                    levels.truncate(1);
                }
                for part in parts(&link).into_iter().rev() {
                    pending.push_front(part);
                }
            }
            _ => {
                return Err(fail(format!("{} is not a directory", show(&here)))
                    .hint("a target must be a directory"));
            }
        }
    }
    let path = path_of(&levels);
    let last = levels.pop();
    let parent = levels.pop();
    let (Some(last), Some(parent)) = (last, parent) else {
        return Err(fail("the root of the host".into()).hint("choose a directory below it"));
    };
    if !rules.system && SYSTEM.iter().any(|dir| path == Path::new(dir)) {
        return Err(Error::usage(format!(
            "bad target {}: a mount would hide the system's own files",
            show(&path)
        ))
        .hint("choose a directory below it, or insist with --over-system-directory"));
    }
    let stat = stat(&last.dir).map_err(|e| fail(format!("statx: {}", errno_text(e))))?;
    let mount = mount_id(&last.dir, OsStr::new(""))
        .map_err(|e| fail(format!("statx: {}", errno_text(e))))?;
    Ok(Walk::Pinned(
        Pinned {
            mount,
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            dir: last.dir,
            parent: parent.dir,
            name: last.name,
            path,
        },
        made,
    ))
}

/// Like [`walk`], where a missing directory is an error.
///
/// # Errors
/// As [`walk`], or the target does not exist.
pub fn pin(target: &Path, rules: Rules) -> Result<(Pinned, Made)> {
    match walk(target, rules)? {
        Walk::Pinned(pinned, made) => Ok((pinned, made)),
        Walk::Missing(..) => Err(missing(target)),
    }
}

/// The error for a target that is not there.
pub fn missing(target: &Path) -> Error {
    Error::mount(format!(
        "bad target {}: no such directory on the host",
        show(target)
    ))
    .hint("make it, or mount with -o x-mount.mkdir")
}

/// The mount at a name in a directory, without asking its file system anything.
///
/// # Errors
/// The errno of statx(2).
pub fn mount_id(dir: impl std::os::fd::AsFd, name: &OsStr) -> std::result::Result<MountId, Errno> {
    let flags = AtFlags::EMPTY_PATH
        | AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::STATX_DONT_SYNC;
    let plain = statx(&dir, name, flags, StatxFlags::MNT_ID)?;
    let unique = statx(&dir, name, flags, MNT_ID_UNIQUE)?;
    Ok(MountId {
        id: plain.stx_mnt_id,
        unique: if unique.stx_mask & MNT_ID_UNIQUE.bits() != 0 {
            unique.stx_mnt_id
        } else {
            0
        },
        is_root: plain.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

impl Pinned {
    /// The topmost mount at the target now, whatever it was when it was pinned.
    ///
    /// # Errors
    /// The errno of statx(2).
    pub fn top(&self) -> std::result::Result<MountId, Errno> {
        mount_id(&self.parent, &self.name)
    }

    /// The mount table's entry of the topmost mount.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn entry(&self) -> Result<Option<mountinfo::Entry>> {
        let top = self.top().map_err(|e| {
            Error::system(format!("cannot look at {}", show(&self.path))).because(e)
        })?;
        mountinfo::find(top.id, top.unique)
            .map_err(|e| Error::system("cannot read the host's mount table").because(e))
    }
}

/// What is known of a file without asking its file system, which may be dead or slow: the lookup that led
/// to it has brought all there is to know of one that is alive.
fn stat(file: &OwnedFd) -> std::result::Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID | StatxFlags::INO;
    statx(file, "", flags, wanted)
}

/// Root's, and others can at most add to it (sticky).
fn trusted(stat: &Statx) -> bool {
    let shared = stat.stx_mode & 0o022 != 0;
    let sticky = stat.stx_mode & 0o1000 != 0;
    stat.stx_uid == 0 && (!shared || sticky)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

fn path_of(levels: &[Level]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(levels.iter().skip(1).map(|level| &level.name));
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_host_prefix_goes_and_relative_paths_start_at_the_cwd() {
        let map = |target: &str, cwd: &str| {
            host_path(Path::new(target), Path::new(cwd), &["/host".into()])
        };
        assert_eq!(map("/mnt/a", "/"), Path::new("/mnt/a"));
        assert_eq!(map("/host/mnt/a", "/"), Path::new("/mnt/a"));
        assert_eq!(map("/host", "/"), Path::new("/"));
        assert_eq!(map("/hostess", "/"), Path::new("/hostess"));
        assert_eq!(map("a/../b", "/srv"), Path::new("/srv/a/../b"));
        assert_eq!(map("b", "/host/srv"), Path::new("/srv/b"));
        assert_eq!(map(".", "/srv"), Path::new("/srv/."));
    }

    #[test]
    fn paths_are_shown_on_one_line() {
        assert_eq!(show(Path::new("/a b,c\nd\\é")), "/a b,c\\012d\\134é");
        assert_eq!(show(Path::new(OsStr::from_bytes(b"/\xff"))), "/\\377");
    }

    #[test]
    fn the_unique_id_decides_where_both_have_one() {
        let mount = MountId {
            id: 7,
            unique: 100,
            is_root: true,
        };
        assert!(mount.is(9, 100) && !mount.is(7, 101));
        assert!(mount.is(7, 0) && !mount.is(8, 0));
    }
}
