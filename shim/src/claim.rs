//! The launcher's claims: files beside a stand-in that say what is to become of calls on it.

use crate::area::Work;
use crate::config::Config;
use crate::policy::parse_claimed_mount;
use crate::sys::{self, CWD, Errno, Fd, Inode, Result};
use crate::text::{Text, split_once};
use crate::walk::fits;

/// The id of a claim, with a suffix.
pub type Name = Text<80>;
/// Content of a claim: a path and some numbers.
pub type Content = Text<8192>;

/// The claim that a target stands for.
pub struct Claimed {
    /// The claims directory, opened in the caller's namespace.
    pub dir: Fd,
    /// The directory that the launcher pinned.
    pub inode: Inode,
}

/// The claims directory, if the launcher claims this id; `content` then holds the claim.
pub fn read(
    config: &Config,
    id: &[u8],
    name: &mut Name,
    content: &mut Content,
) -> Result<Option<Fd>> {
    fits(content.set(config.claims().unwrap_or(&[])))?;
    let dir = sys::open_dir(CWD, content.as_cstr())?;
    fits(name.set(id) && name.push(b".claim"))?;
    match sys::readlink(dir.raw(), name.as_cstr(), content.room()) {
        Ok(len) => {
            content.truncate(len);
            Ok(Some(dir))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Claimed {
    /// Ids (plain, unique) of the mount that was made for this claim. EINVAL, as for any target that is not
    /// mounted, when there is none: what is mounted there now belongs to somebody else.
    pub fn read_mount(&self, work: &mut Work) -> Result<(u64, u64)> {
        let Work { claim, link, .. } = work;
        name_mount(claim)?;
        if let Ok(len) = sys::readlink(self.dir.raw(), claim.as_cstr(), link.room()) {
            link.truncate(len);
        }
        parse_claimed_mount(link.as_bytes()).ok_or(Errno::INVAL)
    }

    /// Leaves the ids of the new mount beside the claim, for the launcher and for the unmount.
    pub fn write_mount(&self, work: &mut Work, id: u64, unique: u64) -> Result<()> {
        let Work { claim, link, .. } = work;
        name_mount(claim)?;
        link.clear();
        fits(link.push_number(id) && link.push(b" ") && link.push_number(unique))?;
        let (dir, name) = (self.dir.raw(), claim.as_cstr());
        match sys::symlink(link.as_cstr(), dir, name) {
            // Of an earlier mount, which is gone: its id would have been found at the target.
            Err(Errno::EXIST) => {
                sys::unlink(dir, name)?;
                sys::symlink(link.as_cstr(), dir, name)
            }
            result => result,
        }
    }
}

fn name_mount(claim: &mut Name) -> Result<()> {
    let id = split_once(claim.as_bytes(), b'.').0.len();
    claim.truncate(id);
    fits(claim.push(b".mount"))
}
