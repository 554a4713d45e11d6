//! Error numbers of the kernel.

use core::num::NonZero;

/// An error number of the kernel. A whole word that is never 0, so that a result with one travels in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(NonZero<usize>);

impl Errno {
    /// 0 is no error number; it becomes 1, so that an error stays one.
    pub const fn new(number: usize) -> Self {
        match NonZero::new(number) {
            Some(number) => Self(number),
            None => Self(NonZero::<usize>::MIN),
        }
    }

    pub fn number(self) -> usize {
        self.0.get()
    }

    pub const ACCES: Self = Self::new(libc::EACCES as usize);
    pub const BADF: Self = Self::new(libc::EBADF as usize);
    pub const BADMSG: Self = Self::new(libc::EBADMSG as usize);
    pub const BUSY: Self = Self::new(libc::EBUSY as usize);
    pub const FAULT: Self = Self::new(libc::EFAULT as usize);
    pub const INTR: Self = Self::new(libc::EINTR as usize);
    pub const INVAL: Self = Self::new(libc::EINVAL as usize);
    pub const IO: Self = Self::new(libc::EIO as usize);
    pub const LOOP: Self = Self::new(libc::ELOOP as usize);
    pub const MFILE: Self = Self::new(libc::EMFILE as usize);
    pub const NAMETOOLONG: Self = Self::new(libc::ENAMETOOLONG as usize);
    pub const NOENT: Self = Self::new(libc::ENOENT as usize);
    pub const NOLINK: Self = Self::new(libc::ENOLINK as usize);
    pub const NOSYS: Self = Self::new(libc::ENOSYS as usize);
    pub const NOTDIR: Self = Self::new(libc::ENOTDIR as usize);
    pub const STALE: Self = Self::new(libc::ESTALE as usize);
}

pub type Result<T> = core::result::Result<T, Errno>;

pub fn check(result: isize) -> Result<usize> {
    if result < 0 {
        Err(Errno::new(result.unsigned_abs()))
    } else {
        Ok(result as usize)
    }
}
