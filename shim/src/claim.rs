//! The launcher's claims: files beside a stand-in that say what is to become of calls on it.

use core::ffi::c_int;

use spc_shim_config::words::split_once;

use crate::area::Work;
use crate::policy::parse_claimed_mount;
use crate::sys::{self, CWD, Errno, Result};
use crate::text::Text;

/// Opens the claims directory, which `content` names, if the launcher claims this id; `content` then holds the claim.
/// Otherwise -1.
pub fn read(name: &mut Text, content: &mut Text) -> Result<c_int> {
    let dir = sys::open_dir(CWD, content.as_name())?;
    match read_link(dir.raw(), name, b".claim", content) {
        Ok(()) => Ok(dir.into_raw()),
        Err(Errno::NOENT) => Ok(-1),
        Err(error) => Err(error),
    }
}

/// Reads the file of this claim with this suffix.
#[inline(never)]
fn read_link(dir: c_int, claim: &mut Text, suffix: &[u8], content: &mut Text) -> Result<()> {
    with_suffix(claim, suffix);
    sys::readlink(dir, claim.as_name(), content)
}

#[inline(never)]
fn with_suffix(name: &mut Text, suffix: &[u8]) {
    let id = split_once(name.as_bytes(), b'.').0.len();
    name.truncate(id);
    name.push(suffix);
}

/// Ids (plain, unique) of the mount that was made for this claim. EINVAL, as for any target that is not mounted,
/// when there is none: what is mounted there now belongs to somebody else.
#[inline(never)]
pub fn read_mount(dir: c_int, work: &mut Work) -> Result<(u64, u64)> {
    let _ = read_link(dir, &mut work.claim, b".mount", &mut work.line);
    parse_claimed_mount(work.line.as_bytes()).ok_or(Errno::INVAL)
}

/// EINVAL unless the topmost mount at `at`, or at the name there that `work` has, is the one that was made for this
/// claim.
#[inline(never)]
pub fn is_that_mount(dir: c_int, work: &mut Work, at: c_int) -> Result<()> {
    let (id, unique) = read_mount(dir, work)?;
    let name = work.name.as_name();
    let same = sys::unique_id(at, name) == unique && sys::mount_id(at, name)? == id;
    if same { Ok(()) } else { Err(Errno::INVAL) }
}

/// Leaves the ids of the new mount beside the claim, for the launcher and for the unmount.
pub fn write_mount(dir: c_int, work: &mut Work, id: u64, unique: u64) -> Result<()> {
    let Work { claim, line, .. } = work;
    with_suffix(claim, b".mount");
    line.clear();
    line.push_number(id);
    line.push_byte(b' ');
    line.push_number(unique);
    // Of an earlier mount, which is gone: the target would have been another directory.
    sys::unlink(dir, claim.as_name());
    sys::symlink(line.as_name(), dir, claim.as_name())
}
