//! Canonical paths without /proc. For the child only: resolving changes the current directory.

use spc_shim_config::words::{is_dots, split_once};

use crate::policy::split_last;
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

/// Limit of the kernel, `MAXSYMLINKS`.
const LINKS_MAX: usize = 40;

/// Moves the last component of `path` to `name`, unless that is `.` or `..`, which name a directory
/// and not an entry of one. `name` is then empty.
#[inline(never)]
pub fn split_parent(path: &mut Text, name: &mut Text) {
    let (head, last) = split_last(path.as_bytes());
    name.clear();
    if !is_dots(last) {
        name.push(last);
        let head = head.len();
        path.truncate(head);
    }
}

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
        split_parent(path, name);
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
/// exist there may exist on the host and are kept. An empty path stands for `dir`. Overwrites `path`
/// and `name`.
#[inline(never)]
pub fn canonical(
    path: &mut Text,
    name: &mut Text,
    dir: i32,
    mut follow: bool,
    into: &mut Text,
) -> Result<()> {
    into.clear();
    // A file has no other name than that in /proc.
    if path.is_empty() && dir != CWD {
        path.push(b"/proc/self/fd/");
        path.push_number(dir as u64);
        follow = true;
    }
    if let Err(error) = enter_parent(path, name, dir, follow) {
        if error != Errno::NOENT && error != Errno::NOTDIR {
            return Err(error);
        }
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

/// Replaces the first component of an absolute path if it is a symlink. Overwrites `name` and
/// `link`. A path that consists of one component is left if `follow` is not set.
///
/// Only root can make a symlink in the root directory. Others could make any other one, and would
/// choose the target.
#[inline(never)]
pub fn follow_root_link(path: &mut Text, name: &mut Text, link: &mut Text, follow: bool) {
    let whole = path.as_bytes();
    let end = 1 + split_once(whole.get(1..).unwrap_or(&[]), b'/').0.len();
    let (first, rest) = whole.split_at_checked(end).unwrap_or_default();
    name.set(first);
    if (follow || !rest.is_empty()) && sys::readlink(CWD, name.as_thin(), link).is_ok() {
        link.push(rest);
        path.clear();
        if !link.begins_with_slash() {
            path.push_byte(b'/');
        }
        path.append(link);
    }
}
