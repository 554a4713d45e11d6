//! Removal of a tree on a share, within a time limit. The next call continues where this one
//! stopped.
//!
//! Every directory is renamed into the outermost one before it is entered. Neither the kernel nor a
//! server renames a mount point, so no mount is entered. This includes mounts that a client cannot
//! see, such as a bind mount in a brick of GlusterFS. The depth of the tree is not limited, since
//! no more than two of its directories are open at once.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::error::Error;
use crate::provision::share::{DIRECTORY, missing_capability, open_beneath, set_ceph_quota};
use crate::provision::{Failure, FailureKind};

/// Number of entries that are read from a directory at once.
const BATCH: usize = 1024;

/// Number of new names that are tried for one directory.
const MAX_NAMES: usize = 100;

/// Number of times that a directory is emptied, if others create files in it meanwhile.
const MAX_ROUNDS: usize = 3;

/// Directory that is being emptied.
struct Level {
    dir: OwnedFd,
    /// Entries that were read and not returned yet: name, and whether it is a directory.
    batch: Vec<(CString, bool)>,
}

impl Level {
    /// Opens an entry of a directory. Removes an entry that is not a directory instead, and returns
    /// none.
    fn open_or_remove(parent: impl AsFd, name: &CStr) -> Result<Option<Self>, Errno> {
        match open_beneath(&parent, name, DIRECTORY) {
            Ok(dir) => Ok(Some(Self {
                dir,
                batch: Vec::new(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                unlink(&parent, name, AtFlags::empty()).map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the next name, and whether it is a directory; none if the directory is empty.
    fn next(&mut self) -> Result<Option<(CString, bool)>, Errno> {
        if self.batch.is_empty() {
            self.read_batch()?;
        }
        Ok(self.batch.pop())
    }

    /// Reads entries from the beginning of the directory. The last batch is removed by now.
    fn read_batch(&mut self) -> Result<(), Errno> {
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
        Ok(())
    }
}

/// Removal of one tree.
struct Removal {
    /// Outermost directory.
    top: OwnedFd,
    deadline: Instant,
    /// Number of entries that this call has begun to remove.
    removed: u64,
    /// Prefix of the names that this call gives to directories.
    prefix: String,
    /// Number of names that this call has given to directories.
    names: u64,
}

/// Removes an entry of a directory, with everything below it. Links are removed, not followed, and
/// mount points are not entered. Succeeds if the entry does not exist.
///
/// # Errors
/// The deadline has passed ([`FailureKind::Unfinished`]), or an entry cannot be removed.
pub fn remove(parent: &OwnedFd, name: &str, deadline: Instant) -> Result<(), Failure> {
    let name = CString::new(name).map_err(|e| Failure::on_share("bad name", e.to_string()))?;
    let fail = |error: Errno| cannot_remove(&name, error);
    let Some(mut top) = Level::open_or_remove(parent, &name).map_err(fail)? else {
        return Ok(());
    };
    // A pod must not be able to guess the new names.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut removal = Removal {
        top: top
            .dir
            .try_clone()
            .map_err(|e| Failure::on_share("cannot open the volume", e))?,
        deadline,
        removed: 0,
        prefix: format!(".spc-{:x}-", now.unwrap_or_default().as_nanos()),
        names: 0,
    };
    for _ in 0..MAX_ROUNDS {
        while let Some((entry, is_dir)) = removal.next(&mut top, &name)? {
            let fail = |error: Errno| cannot_remove(&entry, error);
            if !is_dir {
                unlink(&top.dir, &entry, AtFlags::empty()).map_err(fail)?;
            } else if entry.to_bytes().starts_with(removal.prefix.as_bytes()) {
                removal.remove_directory(&entry)?;
            } else {
                let renamed = removal.move_up(&top.dir, &entry).map_err(fail)?;
                removal.remove_directory(&renamed)?;
            }
        }
        match unlink(parent, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {}
            done => return done.map_err(fail),
        }
    }
    Err(fail(Errno::NOTEMPTY))
}

impl Removal {
    /// Returns the next name in a directory, and whether it is a directory; none if the directory
    /// is empty. Fails after the deadline.
    fn next(&mut self, level: &mut Level, name: &CStr) -> Result<Option<(CString, bool)>, Failure> {
        if Instant::now() >= self.deadline {
            return Err(Failure::new(
                FailureKind::Unfinished,
                Error::mount("the volume is not completely removed")
                    .because(format!(
                        "the time limit ended after {} files and directories",
                        self.removed
                    ))
                    .hint("the next call continues"),
            ));
        }
        let next = level.next().map_err(|error| cannot_remove(name, error))?;
        self.removed += u64::from(next.is_some());
        Ok(next)
    }

    /// Removes a directory of the outermost one. Directories in it are renamed into the outermost
    /// one, and removed later.
    fn remove_directory(&mut self, name: &CStr) -> Result<(), Failure> {
        let fail = |error: Errno| cannot_remove(name, error);
        let Some(mut level) = Level::open_or_remove(&self.top, name).map_err(fail)? else {
            return Ok(());
        };
        for _ in 0..MAX_ROUNDS {
            while let Some((entry, is_dir)) = self.next(&mut level, name)? {
                let done = if is_dir {
                    self.move_up(&level.dir, &entry).map(drop)
                } else {
                    unlink(&level.dir, &entry, AtFlags::empty())
                };
                done.map_err(|error| cannot_remove(&entry, error))?;
            }
            match unlink(&self.top, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => {}
                done => return done.map_err(fail),
            }
        }
        Err(fail(Errno::NOTEMPTY))
    }

    /// Renames a directory into the outermost one, and returns its new name.
    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> Result<CString, Errno> {
        // rename(2) refuses only mount points of the caller's namespace, and the share is mounted
        // in that of the host.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Err(Errno::XDEV) = open_beneath(from, name, flags) {
            return Err(Errno::XDEV);
        }
        let mut has_quota = true;
        for _ in 0..MAX_NAMES {
            self.names += 1;
            let new = format!("{}{}", self.prefix, self.names);
            match renameat(from, name, &self.top, &new) {
                Ok(()) | Err(Errno::NOENT) => return CString::new(new).map_err(|_| Errno::INVAL),
                // A pod has created something of this name.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                // CephFS does not rename out of a directory with a quota of its own.
                Err(Errno::XDEV) if has_quota && set_ceph_quota(from, 0).is_ok() => {
                    has_quota = false;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }
}

/// Removes an entry of a directory. Succeeds if it does not exist.
fn unlink(dir: impl AsFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Returns the failure for an entry that cannot be removed, with a hint by its errno.
fn cannot_remove(name: &CStr, error: Errno) -> Failure {
    let name = name.to_string_lossy();
    let failed = Error::mount(format!("cannot remove {}", name.escape_default())).because(error);
    let failed = match error {
        Errno::ACCESS | Errno::PERM if matches!(missing_capability(), Ok(Some(_))) => failed.hint(
            "start the container with --cap-add=DAC_OVERRIDE --cap-add=FOWNER --cap-add=CHOWN",
        ),
        Errno::ACCESS | Errno::PERM => failed.hint(
            "the server lets root remove only its own files (root_squash), or the file is \
             immutable",
        ),
        Errno::XDEV | Errno::BUSY => {
            failed.hint("another file system is mounted there: unmount it first")
        }
        Errno::NOTEMPTY => failed.hint(
            "a snapshot, or a file that a client has open, keeps the directory: remove it first",
        ),
        _ => failed,
    };
    failed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use crate::provision::scratch::Scratch;

    fn in_a_minute() -> Instant {
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
            remove(&scratch.fd(), name, in_a_minute()).unwrap();
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
        remove(&scratch.fd(), "tree", in_a_minute()).unwrap();
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
        assert_eq!(late.kind, FailureKind::Unfinished);
        remove(&scratch.fd(), "tree", in_a_minute()).unwrap();
        assert!(!tree.exists());
    }
}
