//! Removal of a tree on a share, within a time limit. The next call continues where this one
//! stopped.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::error::Error;
use crate::provision::share::{DIRECTORY, missing_capability, open_name};
use crate::provision::{Failure, Kind};

/// Number of names that are read from a directory at once.
const BATCH: usize = 1024;

/// Number of nested directories that are open at once. Deeper ones are moved up first.
const MAX_DEPTH: usize = 32;

/// Number of names that are tried for a directory that is moved up.
const MAX_NAMES: usize = 10_000;

/// Number of times that a directory which was seen empty is read again, because it is not.
const MAX_ROUNDS: usize = 3;

/// Directory on the way down.
struct Level {
    dir: OwnedFd,
    name: CString,
    batch: Vec<(CString, bool)>,
    /// Times that the directory could not be removed though it was seen empty.
    rounds: usize,
}

impl Level {
    fn open(parent: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        Ok(Self {
            dir: open_name(parent, name, DIRECTORY, Mode::empty())?,
            name: name.to_owned(),
            batch: Vec::new(),
            rounds: 0,
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

/// Removes what has this name in a directory, with everything in it. Links are removed, not
/// followed, and mount points are not entered.
///
/// # Errors
/// The time is over, or something cannot be removed.
pub fn remove(parent: &OwnedFd, name: &str, deadline: Instant) -> Result<(), Failure> {
    let name = CString::new(name).map_err(|e| Failure::on_share("bad name", e.to_string()))?;
    let mut counted = 0_u64;
    let mut stack = match Level::open(parent, &name) {
        Ok(top) => vec![top],
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(unlinkat(parent, &name, AtFlags::empty()))
                .map_err(|error| cannot_remove(&name, error));
        }
        Err(error) => return Err(cannot_remove(&name, error)),
    };
    let mut names = 0;
    loop {
        let depth = stack.len();
        let Some(level) = stack.last_mut() else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Kind::Unfinished,
                Error::mount(format!(
                    "{counted} files and directories of the volume are removed, and the time is over"
                ))
                .hint("the next call continues"),
            ));
        }
        counted += 1;
        let next = level.next();
        match next.map_err(|error| cannot_remove(&level.name, error))? {
            Some((name, false)) => gone(unlinkat(&level.dir, &name, AtFlags::empty()))
                .map_err(|error| cannot_remove(&name, error))?,
            Some((name, true)) if depth >= MAX_DEPTH => {
                move_up(&stack, &name, &mut names).map_err(|error| cannot_remove(&name, error))?;
            }
            Some((name, true)) => match Level::open(&level.dir, &name) {
                Ok(deeper) => stack.push(deeper),
                Err(Errno::NOENT) => {}
                // No directory any more.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    gone(unlinkat(&level.dir, &name, AtFlags::empty()))
                        .map_err(|error| cannot_remove(&name, error))?;
                }
                Err(error) => return Err(cannot_remove(&name, error)),
            },
            None => remove_empty(parent, &mut stack)?,
        }
    }
}

/// Removes the innermost directory, which was seen empty.
fn remove_empty(parent: &OwnedFd, stack: &mut Vec<Level>) -> Result<(), Failure> {
    let Some(mut level) = stack.pop() else {
        return Ok(());
    };
    let outer = stack.last().map_or(parent, |outer| &outer.dir);
    match gone(unlinkat(outer, &level.name, AtFlags::REMOVEDIR)) {
        Ok(()) => Ok(()),
        Err(Errno::NOTEMPTY) if level.rounds < MAX_ROUNDS => {
            level.rounds += 1;
            stack.push(level);
            Ok(())
        }
        Err(error) => Err(cannot_remove(&level.name, error)),
    }
}

/// Moves a directory from the innermost level to the outermost one, which is read again until it is
/// empty.
fn move_up(stack: &[Level], name: &CStr, names: &mut usize) -> Result<(), Errno> {
    let (Some(outermost), Some(innermost)) = (stack.first(), stack.last()) else {
        return Ok(());
    };
    while *names < MAX_NAMES {
        *names += 1;
        match renameat(&innermost.dir, name, &outermost.dir, format!("{names}")) {
            // The name is taken.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            moved => return gone(moved),
        }
    }
    // Another call begins with the first names again, which are free by then.
    Err(Errno::MLINK)
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
    fn a_tree_deeper_than_descriptors_allow_is_removed() {
        let scratch = Scratch::new();
        let mut path = scratch.0.join("tree");
        // A name of the directories that are moved up, taken by a file.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("1"), "x").unwrap();
        for depth in 0..300 {
            path.push(format!("{}", depth % 7));
            let _ = fs::remove_file(&path);
            fs::create_dir(&path).unwrap();
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
