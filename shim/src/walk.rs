//! Canonical paths without /proc. For the child only: resolving changes the current directory.

use spc_shim_config::words::is_dots;

use crate::policy::{fd_path, split_last};
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

/// Limit of the kernel, `MAXSYMLINKS`.
const LINKS_MAX: usize = 40;

/// Enters the directory that contains the last component of `path`, and puts that component into
/// `name`. An empty name stands for the directory itself. Overwrites `path`.
///
/// The last component is not opened, so it may be missing or a mount that does not respond.
#[inline(never)]
pub fn enter_parent(
    path: &mut Text,
    name: &mut Text,
    mut dir: i32,
    mut follow: bool,
) -> Result<()> {
    for _ in 0..LINKS_MAX {
        follow |= path.ends_with_slash();
        let (head, last) = split_last(path.as_bytes());
        name.set(last);
        if is_dots(last) {
            // `.` and `..` name a directory, not an entry of one.
            name.clear();
        } else {
            let head = head.len();
            path.truncate(head);
        }
        if dir != CWD && !path.begins_with_slash() {
            sys::fchdir(dir)?;
        }
        if !path.is_empty() {
            sys::chdir(path.as_thin())?;
        }
        dir = CWD;
        if name.is_empty() || !follow {
            return Ok(());
        }
        match sys::readlink(CWD, name.as_thin(), path) {
            Ok(()) => {}
            Err(error) if error == Errno::INVAL || error == Errno::NOENT => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP)
}

/// Writes the canonical form of `path` in the caller's namespace to `into`. Components that do not
/// exist there may exist on the host and are kept. Overwrites `path` and `name`.
#[inline(never)]
pub fn canonical(
    path: &mut Text,
    name: &mut Text,
    mut dir: i32,
    follow: bool,
    pid: i32,
    into: &mut Text,
) -> Result<()> {
    if let Some((fd, rest)) = fd_path(path.as_bytes(), pid as u64) {
        name.set(b".");
        name.push(rest);
        path.copy(name);
        dir = fd;
    }
    if let Err(error) = enter_parent(path, name, dir, follow) {
        if error != Errno::NOENT && error != Errno::NOTDIR {
            return Err(error);
        }
        into.clear();
        if !path.begins_with_slash() {
            if dir != CWD {
                sys::fchdir(dir)?;
            }
            sys::getcwd(into)?;
            into.push_byte(b'/');
        }
        into.append(path);
    } else {
        sys::getcwd(into)?;
        if !into.ends_with_slash() && !name.is_empty() {
            into.push_byte(b'/');
        }
    }
    into.append(name);
    Ok(())
}
