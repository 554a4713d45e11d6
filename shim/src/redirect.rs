//! Files of the launcher's redirects, beside a placeholder directory: `ID.claim` names the
//! destination of calls on the placeholder, and `ID.mount` holds the ids of the resulting mount.
//! Both are symbolic links whose content is the text, so one system call reads or writes it whole.

use core::ffi::c_int;

use spc_shim_config::words::split_once;

use crate::policy::parse_mount_ids;
use crate::scratch::Buffers;
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

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

/// Returns the mount id and the unique mount id of the mount made through this redirect.
///
/// Fails with EINVAL, as umount(2) does for a target that is no mount point, if there is none.
#[inline(never)]
pub fn read_mount_ids(dir: c_int, buffers: &mut Buffers) -> Result<(u64, u64)> {
    let name = &mut buffers.redirect_name;
    let _ = read_file(dir, name, b".mount", &mut buffers.line);
    parse_mount_ids(buffers.line.as_bytes()).ok_or(Errno::INVAL)
}

/// Fails with EINVAL unless the topmost mount at `buffers.name` in `at` is the one made through
/// this redirect. An empty name stands for `at` itself.
#[inline(never)]
pub fn expect_redirected_mount(dir: c_int, buffers: &mut Buffers, at: c_int) -> Result<()> {
    let (id, unique) = read_mount_ids(dir, buffers)?;
    let name = buffers.name.as_thin();
    let same = sys::unique_id(at, name) == unique && sys::mount_id(at, name)? == id;
    if same { Ok(()) } else { Err(Errno::INVAL) }
}

/// Writes the ids of the new mount beside the redirect, for the launcher and for a later unmount.
pub fn write_mount_ids(dir: c_int, buffers: &mut Buffers, id: u64, unique: u64) -> Result<()> {
    let Buffers {
        redirect_name: name,
        line,
        ..
    } = buffers;
    set_suffix(name, b".mount");
    line.clear();
    line.push_number(id);
    line.push_byte(b' ');
    line.push_number(unique);
    // An existing file belongs to an earlier mount, which is gone: on top of that mount, the target
    // would be another directory than the redirect names.
    sys::unlink(dir, name.as_thin());
    sys::symlink(line.as_thin(), dir, name.as_thin())
}
