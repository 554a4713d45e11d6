//! Canonical paths without /proc. Only for the child: it changes the current directory.

use spc_shim_config::words::is_dots;

use crate::policy::{fd_path, split_last};
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

const LINKS_MAX: usize = 40;

/// Goes to the directory that holds the last name of `path`, which is then in `name`; empty when the directory
/// itself is meant. That name is not opened, so neither a missing file nor a dead mount matters. Uses up `path`.
#[inline(never)]
pub fn go(path: &mut Text, name: &mut Text, mut dir: i32, mut follow: bool) -> Result<()> {
    for _ in 0..LINKS_MAX {
        follow |= path.ends_with_slash();
        let (head, last) = split_last(path.as_bytes());
        name.set(last);
        if is_dots(last) {
            // Another name of a directory, not that of an entry.
            name.clear();
        } else {
            let head = head.len();
            path.truncate(head);
        }
        if dir != CWD && !path.begins_with_slash() {
            sys::fchdir(dir)?;
        }
        if !path.is_empty() {
            sys::chdir(path.as_name())?;
        }
        dir = CWD;
        if name.is_empty() || !follow {
            return Ok(());
        }
        match sys::readlink(CWD, name.as_name(), path) {
            Ok(()) => {}
            Err(error) if error == Errno::INVAL || error == Errno::NOENT => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP)
}

/// The canonical form of `path` in the caller's view. What does not exist there may exist on the host and stays
/// as it is. Uses up `path` and `name`.
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
    if let Err(error) = go(path, name, dir, follow) {
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
