//! Removal of a tree on a share, within a time limit. The next call continues where this one
//! stopped.
//!
//! A directory is renamed before it is entered: to a name in the outermost directory, from which it
//! is then emptied. No server and no kernel renames a mount point. So what is mounted on a
//! directory is not entered, even where a client cannot see that, such as a bind mount in a brick
//! of GlusterFS. And no tree is too deep.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::error::Error;
use crate::provision::share::{DIRECTORY, missing_capability, open_name, set_ceph_quota};
use crate::provision::{Failure, Kind};

/// Number of names that are read from a directory at once.
const BATCH: usize = 1024;

/// Number of new names that are tried for a directory.
const MAX_NAMES: usize = 100;

/// Number of times that a directory which was seen empty is read again, because it is not.
const MAX_ROUNDS: usize = 3;

/// Open directory.
struct Level {
    dir: OwnedFd,
    batch: Vec<(CString, bool)>,
}

impl Level {
    fn open(parent: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        Ok(Self {
            dir: open_name(parent, name, DIRECTORY, Mode::empty())?,
            batch: Vec::new(),
        })
    }

    /// Returns the next name, and whether it is a directory; none if the directory is empty.
    fn next(&mut self) -> Result<Option<(CString, bool)>, Errno> {
        if self.batch.is_empty() {
            // Always from the beginning, since what was there before is removed.
            for entry in Dir::read_from(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let is_dir = match entry.file_type() {
                    FileType::Unknown => match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode).is_dir(),
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(error),
                    },
                    known => known.is_dir(),
                };
                self.batch.push((name.to_owned(), is_dir));
                if self.batch.len() == BATCH {
                    break;
                }
            }
        }
        Ok(self.batch.pop())
    }
}

/// Removal of one tree.
struct Removal {
    /// Outermost directory.
    top: OwnedFd,
    deadline: Instant,
    counted: u64,
    /// Beginning of the names of directories that this call has renamed.
    prefix: String,
    names: u64,
}

/// Removes what has this name in a directory, with everything in it. Links are removed, not
/// followed, and mount points are not entered.
///
/// # Errors
/// The time is over, or something cannot be removed.
pub fn remove(parent: &OwnedFd, name: &str, deadline: Instant) -> Result<(), Failure> {
    let name = CString::new(name).map_err(|e| Failure::on_share("bad name", e.to_string()))?;
    let fail = |error: Errno| cannot_remove(&name, error);
    let mut top = match Level::open(parent, &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(unlinkat(parent, &name, AtFlags::empty())).map_err(fail);
        }
        Err(error) => return Err(fail(error)),
    };
    // Names that a pod cannot have foreseen.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut removal = Removal {
        top: top
            .dir
            .try_clone()
            .map_err(|e| Failure::on_share("cannot open the volume", e))?,
        deadline,
        counted: 0,
        prefix: format!(".spc-{:x}-", since.unwrap_or_default().as_nanos()),
        names: 0,
    };
    for _ in 0..MAX_ROUNDS {
        while let Some((entry, is_dir)) = removal.next(&mut top, &name)? {
            let fail = |error: Errno| cannot_remove(&entry, error);
            match is_dir {
                true if entry.to_bytes().starts_with(removal.prefix.as_bytes()) => {
                    removal.remove_directory(&entry)?;
                }
                true => {
                    let renamed = removal.move_up(&top.dir, &entry).map_err(fail)?;
                    removal.remove_directory(&renamed)?;
                }
                false => gone(unlinkat(&top.dir, &entry, AtFlags::empty())).map_err(fail)?,
            }
        }
        match gone(unlinkat(parent, &name, AtFlags::REMOVEDIR)) {
            Err(Errno::NOTEMPTY) => {}
            done => return done.map_err(fail),
        }
    }
    Err(fail(Errno::NOTEMPTY))
}

impl Removal {
    /// Returns the next name in a directory, and whether it is a directory, unless the time is over.
    fn next(&mut self, level: &mut Level, name: &CStr) -> Result<Option<(CString, bool)>, Failure> {
        if Instant::now() >= self.deadline {
            return Err(Failure::new(
                Kind::Unfinished,
                Error::mount(format!(
                    "{} files and directories of the volume are removed, and the time is over",
                    self.counted
                ))
                .hint("the next call continues"),
            ));
        }
        let next = level.next().map_err(|error| cannot_remove(name, error))?;
        self.counted += u64::from(next.is_some());
        Ok(next)
    }

    /// Removes a directory of the outermost one. Those in it are moved up.
    fn remove_directory(&mut self, name: &CStr) -> Result<(), Failure> {
        let fail = |error: Errno| cannot_remove(name, error);
        let mut level = match Level::open(&self.top, name) {
            Ok(level) => level,
            Err(Errno::NOENT) => return Ok(()),
            // No directory any more.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return gone(unlinkat(&self.top, name, AtFlags::empty())).map_err(fail);
            }
            Err(error) => return Err(fail(error)),
        };
        for _ in 0..MAX_ROUNDS {
            while let Some((entry, is_dir)) = self.next(&mut level, name)? {
                let done = match is_dir {
                    true => self.move_up(&level.dir, &entry).map(drop),
                    false => gone(unlinkat(&level.dir, &entry, AtFlags::empty())),
                };
                done.map_err(|error| cannot_remove(&entry, error))?;
            }
            match gone(unlinkat(&self.top, name, AtFlags::REMOVEDIR)) {
                Err(Errno::NOTEMPTY) => {}
                done => return done.map_err(fail),
            }
        }
        Err(fail(Errno::NOTEMPTY))
    }

    /// Renames a directory to a new name in the outermost one, and returns that name.
    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> Result<CString, Errno> {
        // A mount in another namespace than this process's does not stop the rename.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Err(Errno::XDEV) = open_name(from, name, flags, Mode::empty()) {
            return Err(Errno::XDEV);
        }
        let mut has_quota = true;
        for _ in 0..MAX_NAMES {
            self.names += 1;
            let new = format!("{}{}", self.prefix, self.names);
            match renameat(from, name, &self.top, &new) {
                Ok(()) | Err(Errno::NOENT) => return CString::new(new).map_err(|_| Errno::INVAL),
                // The name is taken.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                // CephFS renames nothing out of a directory with a quota of its own.
                Err(Errno::XDEV) if has_quota && set_ceph_quota(from, 0).is_ok() => {
                    has_quota = false;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }
}

/// Returns success if something else has removed the name.
fn gone(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

fn cannot_remove(name: &CStr, error: Errno) -> Failure {
    let name = name.to_string_lossy();
    let hint = match error {
        Errno::ACCESS | Errno::PERM if matches!(missing_capability(), Ok(Some(_))) => {
            "start the container with --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=CHOWN"
        }
        Errno::XDEV | Errno::BUSY => "another file system is mounted there: unmount it first",
        Errno::NOTEMPTY => {
            "a snapshot, or a file that a client has open, keeps the directory: remove it first"
        }
        Errno::ACCESS | Errno::PERM => {
            "the server lets root remove only its own files (root_squash), or the file is immutable"
        }
        _ => "",
    };
    let failed = Error::mount(format!("cannot remove {}", name.escape_default())).because(error);
    match hint {
        "" => failed.into(),
        hint => failed.hint(hint).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use crate::provision::scratch::Scratch;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let scratch = Scratch::new();
        let outside = scratch.0.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = scratch.0.join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink("../outside", tree.join("deep/er/link")).unwrap();
        symlink("..", tree.join("up")).unwrap();
        fs::hard_link(outside.join("kept"), tree.join("deep/hard")).unwrap();
        symlink(&outside, scratch.0.join("top")).unwrap();
        for name in ["tree", "top", "nothing"] {
            remove(&scratch.fd(), name, soon()).unwrap();
            assert!(!scratch.0.join(name).exists(), "{name}");
        }
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"x");
    }

    #[test]
    fn a_deep_tree_is_removed() {
        let scratch = Scratch::new();
        let mut path = scratch.0.join("tree");
        for depth in 0..300 {
            path.push(format!("{}", depth % 7));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
        }
        remove(&scratch.fd(), "tree", soon()).unwrap();
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
    }

    #[test]
    fn a_call_stops_at_its_limit_and_the_next_one_continues() {
        let scratch = Scratch::new();
        let tree = scratch.0.join("tree");
        fs::create_dir(&tree).unwrap();
        for file in 0..3 * BATCH {
            fs::write(tree.join(file.to_string()), "").unwrap();
        }
        let late = remove(&scratch.fd(), "tree", Instant::now()).unwrap_err();
        assert_eq!(late.kind, Kind::Unfinished);
        remove(&scratch.fd(), "tree", soon()).unwrap();
        assert!(!tree.exists());
    }
}
