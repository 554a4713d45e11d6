//! Targets: resolution of a path to a pinned directory below the host's root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, linkat, mkdirat, open, openat, readlinkat,
    statx, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, errno_text, show};
use crate::host::mount_id::{MountId, mount_id};
use crate::host::mountinfo;

/// System directories, which a mount on top would hide.
const SYSTEM: [&str; 7] = ["/proc", "/sys", "/dev", "/etc", "/usr", "/run", "/var"];

/// Largest number of symbolic links in one walk, the same as the kernel's (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Directory that is held open in the host's namespace. A mount is made on this directory, whatever
/// its path leads to by then.
#[derive(Debug)]
pub struct Pinned {
    /// `O_PATH` descriptor of the directory.
    pub dir: OwnedFd,
    /// `O_PATH` descriptor of its parent directory.
    pub parent: OwnedFd,
    /// Whether only root can rename the directory.
    pub only_root_renames: bool,
    /// Name in the parent directory.
    pub name: OsString,
    /// Absolute path on the host without symbolic links.
    pub path: PathBuf,
    /// Device number (`st_dev`), major and minor.
    pub dev: (u32, u32),
    /// Inode number (`st_ino`).
    pub ino: u64,
    /// Mount that the directory is on.
    pub mount: MountId,
}

/// Rules of a walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Mode of missing directories that the walk creates (`x-mount.mkdir`); none to create none.
    pub mkdir: Option<u32>,
    /// Whether the target may be a system directory such as `/etc`.
    pub system: bool,
    /// Number of last components that must not be symbolic links, not even root's.
    pub no_symlink_tail: usize,
}

/// Result of a walk.
#[derive(Debug)]
pub enum Walk {
    /// Directory that exists, and the directories that were created for it.
    Pinned(Pinned, CreatedDirs),
    /// Path that does not exist: the canonical path of the part that does, and the missing rest.
    Missing(PathBuf, PathBuf),
}

/// Directories that the walk created, outermost first. They are removed when dropped, unless kept.
#[derive(Debug, Default)]
pub struct CreatedDirs(Vec<(OwnedFd, OsString)>);

impl CreatedDirs {
    /// Keeps the directories, because the mount succeeded.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedDirs {
    fn drop(&mut self) {
        for (parent, name) in self.0.drain(..).rev() {
            // A directory that is not empty, or is gone, belongs to another process by now.
            let _ = unlinkat(&parent, &name, AtFlags::REMOVEDIR);
        }
    }
}

/// Returns the absolute path of a target on the host. `hosts` are directories at which the
/// container sees the host's root; such a prefix is removed. `.` and `..` stay, for the walk.
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

/// Directory on the path of a walk.
struct Level {
    /// Name in the directory above; empty for the root.
    name: OsString,
    /// `O_PATH` descriptor.
    dir: OwnedFd,
    /// Whether only root can replace entries of this directory.
    trusted: bool,
}

/// Walks to a directory below the root of the calling thread. Run it on the host's thread.
///
/// Every component is opened without following a symbolic link. Links are resolved here, under that
/// root, and only if root alone controls them.
///
/// # Errors
/// A component cannot be opened or created, is not a directory, or is a symbolic link that a user
/// other than root made or could replace. The target is `/`, or a system directory that the rules
/// do not allow. Directories that the walk created are removed again.
pub fn walk(target: &Path, rules: Rules) -> Result<Walk> {
    let mut walker = Walker::new(target, rules)?;
    while let Some(name) = walker.pending.pop_front() {
        if name == ".." {
            walker.go_up();
        } else if let Some(file) = walker.open_component(&name)? {
            walker.step(name, file)?;
        } else {
            return Ok(walker.missing(name));
        }
    }
    walker.pin()
}

/// State of a walk.
struct Walker<'a> {
    target: &'a Path,
    rules: Rules,
    root: Level,
    /// Directories below the root, down to the current one. Empty while the root is the current
    /// one.
    below: Vec<Level>,
    /// Components still to be walked.
    pending: VecDeque<OsString>,
    /// Number of symbolic links that were followed.
    links: usize,
    created: CreatedDirs,
}

impl<'a> Walker<'a> {
    /// Starts at the root of the calling thread.
    fn new(target: &'a Path, rules: Rules) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open("/", flags, Mode::empty())
            .map_err(|e| bad_target(target, &format!("/: {}", errno_text(e))))?;
        Ok(Self {
            target,
            rules,
            root: Level {
                name: OsString::new(),
                trusted: stat(&root).is_ok_and(|stat| is_trusted(&stat)),
                dir: root,
            },
            below: Vec::new(),
            pending: components(target),
            links: 0,
            created: CreatedDirs::default(),
        })
    }

    /// Returns the current directory.
    fn current(&self) -> &Level {
        self.below.last().unwrap_or(&self.root)
    }

    /// Returns the canonical path of the current directory.
    fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.below.iter().map(|level| &level.name));
        path
    }

    /// Makes the parent of the current directory the current one. The root has itself as parent.
    fn go_up(&mut self) {
        self.below.pop();
    }

    /// Opens an entry of the current directory without following a symbolic link. Creates a missing
    /// directory if the rules say so; otherwise returns none.
    fn open_component(&mut self, name: &OsStr) -> Result<Option<OwnedFd>> {
        let mut opened = open_entry(&self.current().dir, name);
        if matches!(opened, Err(Errno::NOENT)) {
            let Some(mode) = self.rules.mkdir else {
                return Ok(None);
            };
            self.create(name, mode)?;
            opened = open_entry(&self.current().dir, name);
        }
        opened.map(Some).map_err(|errno| {
            let error = self.fail_at(&self.path().join(name), errno);
            match errno {
                Errno::ACCESS => error.hint(
                    "only another user may enter a directory of this path: start the container \
                     with --cap-add=DAC_READ_SEARCH",
                ),
                _ => error,
            }
        })
    }

    /// Creates a directory in the current one and records it for removal.
    fn create(&mut self, name: &OsStr, mode: u32) -> Result<()> {
        let dir = &self.current().dir;
        match mkdirat(dir, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                let parent = dir.try_clone().map_err(|e| self.fail(&errno_text(e)))?;
                self.created.0.push((parent, name.to_owned()));
                Ok(())
            }
            // Another process created it meanwhile.
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => {
                let path = show(&self.path().join(name));
                Err(self.fail(&format!("cannot create {path}: {}", errno_text(errno))))
            }
        }
    }

    /// Enters a directory, or follows a symbolic link.
    fn step(&mut self, name: OsString, file: OwnedFd) -> Result<()> {
        let path = self.path().join(&name);
        let stat = stat(&file).map_err(|e| self.fail_at(&path, e))?;
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => {
                let trusted = self.current().trusted && is_trusted(&stat);
                self.below.push(Level {
                    name,
                    dir: file,
                    trusted,
                });
                Ok(())
            }
            FileType::Symlink => {
                self.links += 1;
                self.check_link(&path, &stat)?;
                self.follow(&path, &file)
            }
            _ => Err(self
                .fail(&format!("{} is not a directory", show(&path)))
                .hint("a target must be a directory")),
        }
    }

    /// Checks that a symbolic link in the current directory may be followed.
    fn check_link(&self, path: &Path, stat: &Statx) -> Result<()> {
        if self.links > MAX_LINKS {
            return Err(self.fail(&errno_text(Errno::LOOP)));
        }
        // The pending components end with the last ones of the target, also after a link.
        if self.pending.len() < self.rules.no_symlink_tail {
            return Err(self.fail(&format!(
                "{} is a symbolic link, which is not allowed there",
                show(path)
            )));
        }
        if !(self.current().trusted && stat.stx_uid == 0) {
            return Err(self
                .fail(&format!(
                    "{} is a symbolic link that a user other than root controls",
                    show(path)
                ))
                .hint("if the directory that it points to is the right one, give its path"));
        }
        Ok(())
    }

    /// Puts the components of a symbolic link before the pending ones.
    fn follow(&mut self, path: &Path, link: &OwnedFd) -> Result<()> {
        let text = readlinkat(link, "", Vec::new()).map_err(|e| self.fail_at(path, e))?;
        let text = PathBuf::from(OsString::from_vec(text.into_bytes()));
        if text.is_absolute() {
            self.below.clear();
        }
        for component in components(&text).into_iter().rev() {
            self.pending.push_front(component);
        }
        Ok(())
    }

    /// Ends the walk at a component that does not exist.
    fn missing(mut self, name: OsString) -> Walk {
        self.pending.push_front(name);
        Walk::Missing(self.path(), self.pending.into_iter().collect())
    }

    /// Ends the walk: pins the current directory as the target.
    fn pin(mut self) -> Result<Walk> {
        let path = self.path();
        let Some(last) = self.below.pop() else {
            return Err(self
                .fail("this is the root of the host")
                .hint("choose a directory below it"));
        };
        if !self.rules.system && SYSTEM.iter().any(|dir| path == Path::new(dir)) {
            return Err(Error::usage(format!(
                "bad target {}: a mount would hide the system's own files",
                show(&path)
            ))
            .hint("choose a directory below it, or insist with --over-system-directory"));
        }
        let fail = |e: Errno| self.fail(&format!("statx: {}", errno_text(e)));
        let stat = stat(&last.dir).map_err(fail)?;
        let mount = mount_id(&last.dir, OsStr::new("")).map_err(fail)?;
        let parent = self.below.pop().unwrap_or(self.root);
        Ok(Walk::Pinned(
            Pinned {
                mount,
                dev: (stat.stx_dev_major, stat.stx_dev_minor),
                ino: stat.stx_ino,
                dir: last.dir,
                parent: parent.dir,
                only_root_renames: parent.trusted,
                name: last.name,
                path,
            },
            self.created,
        ))
    }

    /// Returns the error for this target.
    fn fail(&self, cause: &str) -> Error {
        bad_target(self.target, cause)
    }

    /// Returns the error for a system call on a path of the walk.
    fn fail_at(&self, path: &Path, errno: Errno) -> Error {
        self.fail(&format!("{}: {}", show(path), errno_text(errno)))
    }
}

/// Returns the error for a target that the walk cannot reach.
fn bad_target(target: &Path, cause: &str) -> Error {
    Error::mount(format!("bad target {}: {cause}", show(target)))
        .hint("look at the path on the host")
}

/// Opens an entry of a directory without following a symbolic link.
fn open_entry(dir: &OwnedFd, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Walks to a directory that must exist; otherwise like [`walk`].
///
/// # Errors
/// The target does not exist, or [`walk`] fails.
pub fn pin(target: &Path, rules: Rules) -> Result<(Pinned, CreatedDirs)> {
    match walk(target, rules)? {
        Walk::Pinned(pinned, made) => Ok((pinned, made)),
        Walk::Missing(..) => Err(missing(target)),
    }
}

/// Returns the error for a target that does not exist.
pub fn missing(target: &Path) -> Error {
    Error::mount(format!(
        "bad target {}: no such directory on the host",
        show(target)
    ))
    .hint("create it, or mount with -o x-mount.mkdir")
}

impl Pinned {
    /// Waits for the end of any rename(2) of the directory that began before a mount was attached
    /// to it. Later ones fail with `EBUSY`.
    ///
    /// The kernel looks for mounts before it renames. A rename that it has let through can still
    /// move a directory that has become a mount point meanwhile. It holds a lock of the parent
    /// directory, which link(2) takes as well. The link is never made: the name exists, and a
    /// directory cannot be linked.
    pub fn wait_for_renames(&self) {
        if !self.only_root_renames {
            let _ = linkat(
                &self.parent,
                ".",
                &self.parent,
                &self.name,
                AtFlags::empty(),
            );
        }
    }

    /// Returns the topmost mount at the target now. It may be newer than the pinned directory.
    ///
    /// # Errors
    /// Returns the errno of statx(2).
    pub fn top(&self) -> std::result::Result<MountId, Errno> {
        mount_id(&self.parent, &self.name)
    }

    /// Returns the mount table entry of the topmost mount.
    ///
    /// # Errors
    /// The mount id or the mount table cannot be read.
    pub fn entry(&self) -> Result<Option<mountinfo::Entry>> {
        let top = self.top().map_err(|e| {
            Error::system(format!("cannot read the mount id of {}", show(&self.path))).because(e)
        })?;
        mountinfo::find(top.id, top.unique)
            .map_err(|e| Error::system("cannot read the host's mount table").because(e))
    }
}

/// Returns cached attributes of a file, without a request to its file system, which may be dead or
/// slow (`AT_STATX_DONT_SYNC`). The lookup that opened the file has just filled the cache.
fn stat(file: &OwnedFd) -> std::result::Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID | StatxFlags::INO;
    statx(file, "", flags, wanted)
}

/// Returns whether only root can replace entries of a directory: root owns it, and other users
/// cannot write to it, or can only add entries (sticky bit).
fn is_trusted(stat: &Statx) -> bool {
    let shared = stat.stx_mode & 0o022 != 0;
    let sticky = stat.stx_mode & 0o1000 != 0;
    stat.stx_uid == 0 && (!shared || sticky)
}

/// Returns the components of a path, `..` included.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn host_path_drops_the_host_prefix_and_resolves_against_the_cwd() {
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
}
