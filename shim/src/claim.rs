//! The launcher's claims: files beside a stand-in that say what is to become of calls on it.

use crate::area::Work;
use crate::config::Config;
use crate::config::split_once;
use crate::policy::parse_claimed_mount;
use crate::sys::{self, CWD, Errno, Fd, Inode, Result};
use crate::text::Text;

/// The claim that a target stands for.
pub struct Claimed {
    /// The claims directory, opened in the caller's namespace.
    pub dir: Fd,
    /// The directory that the launcher pinned.
    pub inode: Inode,
}

/// The claims directory, if the launcher claims this id; `content` then holds the claim. Leaves the id in `name`.
#[inline(never)]
pub fn read(config: &Config, name: &mut Text, content: &mut Text) -> Result<Option<Fd>> {
    content.set(config.claims().unwrap_or(&[]));
    let dir = sys::open_dir(CWD, content.as_cstr())?;
    match read_link(&dir, name, b".claim", content) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the file of this claim with this suffix.
#[inline(never)]
fn read_link(dir: &Fd, name: &mut Text, suffix: &[u8], content: &mut Text) -> Result<()> {
    with_suffix(name, suffix);
    let len = sys::readlink(dir.raw(), name.as_cstr(), content.room())?;
    content.truncate(len);
    Ok(())
}

#[inline(never)]
fn with_suffix(name: &mut Text, suffix: &[u8]) {
    let id = split_once(name.as_bytes(), b'.').0.len();
    name.truncate(id);
    name.push(suffix);
}

impl Claimed {
    /// Ids (plain, unique) of the mount that was made for this claim. EINVAL, as for any target that is not
    /// mounted, when there is none: what is mounted there now belongs to somebody else.
    #[inline(never)]
    pub fn read_mount(&self, work: &mut Work) -> Result<(u64, u64)> {
        let _ = read_link(&self.dir, &mut work.claim, b".mount", &mut work.line);
        parse_claimed_mount(work.line.as_bytes()).ok_or(Errno::INVAL)
    }

    /// Leaves the ids of the new mount beside the claim, for the launcher and for the unmount.
    #[inline(never)]
    pub fn write_mount(&self, work: &mut Work, id: u64, unique: u64) -> Result<()> {
        let Work { claim, line, .. } = work;
        with_suffix(claim, b".mount");
        line.clear();
        line.push_number(id);
        line.push_byte(b' ');
        line.push_number(unique);
        // Of an earlier mount, which is gone: the target would have been another directory.
        sys::unlink(self.dir.raw(), claim.as_cstr());
        sys::symlink(line.as_cstr(), self.dir.raw(), claim.as_cstr())
    }
}
