//! Canonical paths without /proc. Only for the child: it changes the current directory.

use crate::policy::{fd_path, split_last};
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

/// `PATH_MAX` bytes, NUL included, as in the kernel.
pub type Path = Text<4097>;

const LINKS_MAX: usize = 40;

/// A path on its way through the file system.
#[repr(C)]
pub struct Walk {
    /// The path still to follow; to be set before a walk.
    pub path: Path,
    /// After a walk: the last name below the current directory, or empty when that directory itself is meant.
    pub name: Path,
    link: Path,
}

impl Walk {
    /// Goes to the directory that holds the last name of `path`. That name is not opened, so neither a missing
    /// file nor a dead mount matters.
    pub fn go(&mut self, mut dir: i32, follow: bool) -> Result<()> {
        for _ in 0..LINKS_MAX {
            let path = self.path.as_bytes();
            let (head, last) = split_last(path);
            let whole = matches!(last, b"" | b"." | b"..");
            let follow = follow || path.ends_with(b"/");
            fits(self.name.set(if whole { path } else { head }))?;
            fits(self.link.set(last))?;
            if !self.name.as_bytes().is_empty() {
                let opened = sys::open_dir(dir, self.name.as_cstr())?;
                sys::fchdir(opened.raw())?;
            } else if dir != CWD {
                sys::fchdir(dir)?;
            }
            dir = CWD;
            self.name.clear();
            if whole {
                return Ok(());
            }
            fits(self.name.set(self.link.as_bytes()))?;
            if !follow {
                return Ok(());
            }
            let name = self.name.as_cstr();
            match sys::readlink(CWD, name, self.path.room()) {
                Ok(len) => self.path.truncate(len),
                // Not a link. The path is done with, whatever it holds now.
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(Errno::LOOP)
    }

    /// The canonical form of `path` in the caller's view. What does not exist there may exist on the host and
    /// is only cleaned up.
    pub fn canonical(&mut self, dir: i32, follow: bool, pid: i32, into: &mut Path) -> Result<()> {
        let mut dir = dir;
        if let Some((fd, rest)) = fd_path(self.path.as_bytes(), pid as u64) {
            fits(self.link.set(rest))?;
            fits(self.path.set(self.link.as_bytes()))?;
            dir = fd;
        }
        if self.path.as_bytes().is_empty() && dir != CWD {
            match sys::fchdir(dir) {
                // Not a directory: only /proc knows its name.
                Err(Errno::NOTDIR) => self.path_of_file(dir)?,
                result => result?,
            }
            dir = CWD;
        }
        match self.go(dir, follow) {
            Ok(()) => {
                getcwd(into)?;
                match self.name.as_bytes() {
                    [] => Ok(()),
                    name => append(into, name),
                }
            }
            Err(Errno::NOENT | Errno::NOTDIR) => self.clean_up(dir, into),
            Err(error) => Err(error),
        }
    }

    fn path_of_file(&mut self, fd: i32) -> Result<()> {
        const NOT_A_DIRECTORY: Errno = Errno::NOTDIR;
        fits(self.name.set(b"/proc/self/fd/") && self.name.push_number(fd as u64))?;
        let name = self.name.as_cstr();
        let len = sys::readlink(CWD, name, self.path.room()).map_err(|_| NOT_A_DIRECTORY)?;
        self.path.truncate(len);
        if self.path.as_bytes().starts_with(b"/") {
            Ok(())
        } else {
            Err(NOT_A_DIRECTORY)
        }
    }

    fn clean_up(&mut self, dir: i32, into: &mut Path) -> Result<()> {
        into.clear();
        if !self.path.as_bytes().starts_with(b"/") {
            if dir != CWD {
                sys::fchdir(dir)?;
            }
            getcwd(into)?;
        }
        for name in self.path.as_bytes().split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => {
                    let (head, _) = split_last(into.as_bytes());
                    let len = head.len().saturating_sub(1);
                    into.truncate(len);
                }
                name => append(into, name)?,
            }
        }
        if into.as_bytes().is_empty() {
            fits(into.set(b"/"))?;
        }
        Ok(())
    }
}

fn getcwd(into: &mut Path) -> Result<()> {
    let len = sys::getcwd(into.room())?;
    into.truncate(len);
    Ok(())
}

fn append(path: &mut Path, name: &[u8]) -> Result<()> {
    fits((path.as_bytes().ends_with(b"/") || path.push(b"/")) && path.push(name))
}

/// A text that did not fit is a path that the kernel would not take either.
pub fn fits(done: bool) -> Result<()> {
    if done {
        Ok(())
    } else {
        Err(Errno::NAMETOOLONG)
    }
}
