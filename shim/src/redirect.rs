//! Files of the launcher's redirects, beside a placeholder directory: `ID.claim` names the
//! destination of calls on the placeholder, and `ID.mount` holds the ids of the resulting mount.
//! Both are symbolic links whose content is the text, so one system call reads or writes it whole.

use core::ffi::c_int;

use spc_shim_config::words::{same, split_once, strip};

use crate::scratch::Buffers;
use crate::sys::{self, CWD, Errno, Inode, Result};
use crate::text::{Text, ThinCStr, thin};

/// Error of a target whose path leads to another file than the one that was pinned or mounted on.
pub const TARGET_CHANGED: Errno = Errno::STALE;

/// Reads the redirect of the placeholder with the id `name`. On entry, `content` is the path of the
/// directory of redirects; afterwards it is the redirect.
///
/// Returns a descriptor of that directory, or -1 if the placeholder has no redirect.
pub fn read(name: &mut Text, content: &mut Text) -> Result<c_int> {
    let dir = sys::open_dir(CWD, content.as_thin())?;
    match read_file(dir.raw(), name, b".claim", content) {
        Ok(()) => Ok(dir.into_raw()),
        Err(Errno::NOENT) => Ok(-1),
        Err(error) => Err(error),
    }
}

/// Reads the redirect's file with this suffix.
#[inline(never)]
fn read_file(dir: c_int, name: &mut Text, suffix: &[u8], content: &mut Text) -> Result<()> {
    set_suffix(name, suffix);
    sys::readlink(dir, name.as_thin(), content)
}

#[inline(never)]
fn set_suffix(name: &mut Text, suffix: &[u8]) {
    let id = split_once(name.as_bytes(), b'.').0.len();
    name.truncate(id);
    name.push(suffix);
}

/// Fails with ESTALE unless the redirect, which is in `buffers.line`, names this file: it begins
/// with its device and inode number.
pub fn expect_file(buffers: &mut Buffers<'_>, fd: c_int) -> Result<()> {
    let Inode { device, number } = sys::statx(fd, thin(c""), libc::STATX_INO)?.inode;
    let Buffers { line, path, .. } = buffers;
    path.set(b"carry ");
    path.push_number(device >> 32);
    path.push_byte(b':');
    path.push_number(device & u64::from(u32::MAX));
    path.push_byte(b' ');
    path.push_number(number);
    path.push(b" /");
    match strip(line.as_bytes(), path.as_bytes()) {
        Some(_) => Ok(()),
        None => Err(TARGET_CHANGED),
    }
}

/// Fails with EINVAL, as umount(2) does for a target that is no mount point, unless the topmost
/// mount at `buffers.name` in `at` is the one made through this redirect. An empty name stands for
/// `at` itself.
#[inline(never)]
pub fn expect_redirected_mount(dir: c_int, buffers: &mut Buffers<'_>, at: c_int) -> Result<()> {
    let Buffers {
        redirect_name,
        name,
        line,
        path,
        ..
    } = buffers;
    write_ids(at, name.as_thin(), path)?;
    let read = read_file(dir, redirect_name, b".mount", line);
    if read.is_ok() && same(line.as_bytes(), path.as_bytes()) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}

/// Writes mount id and unique mount id of the topmost mount on a file to `into`.
#[inline(never)]
fn write_ids(dir: c_int, file: ThinCStr<'_>, into: &mut Text) -> Result<()> {
    into.clear();
    into.push_number(sys::mount_id(dir, file)?);
    into.push_byte(b' ');
    into.push_number(sys::unique_id(dir, file));
    Ok(())
}

/// Writes the ids of the new mount on `file` beside the redirect, for the launcher and for a later
/// unmount.
pub fn write_mount_ids(dir: c_int, buffers: &mut Buffers<'_>, file: ThinCStr<'_>) -> Result<()> {
    let Buffers {
        redirect_name: name,
        line,
        ..
    } = buffers;
    set_suffix(name, b".mount");
    write_ids(CWD, file, line)?;
    // An existing file belongs to an earlier mount, which is gone: on top of that mount, the target
    // would be another directory than the redirect names.
    sys::unlink(dir, name.as_thin());
    sys::symlink(line.as_thin(), dir, name.as_thin())
}
