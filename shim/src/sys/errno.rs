//! Error numbers of the kernel.

use core::num::NonZero;

/// Error number of the kernel. A non-zero word, so that a `Result` fits in two registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(NonZero<usize>);

impl Errno {
    /// Converts an error number. 0, which is none, becomes 1.
    pub const fn new(number: usize) -> Self {
        match NonZero::new(number) {
            Some(number) => Self(number),
            None => Self(NonZero::<usize>::MIN),
        }
    }

    /// Returns the number.
    pub fn number(self) -> usize {
        self.0.get()
    }

    /// EBADMSG.
    pub const BADMSG: Self = Self::new(libc::EBADMSG as usize);
    /// EBUSY.
    pub const BUSY: Self = Self::new(libc::EBUSY as usize);
    /// EFAULT.
    pub const FAULT: Self = Self::new(libc::EFAULT as usize);
    /// EINVAL.
    pub const INVAL: Self = Self::new(libc::EINVAL as usize);
    /// EIO.
    pub const IO: Self = Self::new(libc::EIO as usize);
    /// ELOOP.
    pub const LOOP: Self = Self::new(libc::ELOOP as usize);
    /// ENAMETOOLONG.
    pub const NAMETOOLONG: Self = Self::new(libc::ENAMETOOLONG as usize);
    /// ENOENT.
    pub const NOENT: Self = Self::new(libc::ENOENT as usize);
    /// ENOLINK.
    pub const NOLINK: Self = Self::new(libc::ENOLINK as usize);
    /// ENOSYS.
    pub const NOSYS: Self = Self::new(libc::ENOSYS as usize);
    /// ENOTDIR.
    pub const NOTDIR: Self = Self::new(libc::ENOTDIR as usize);
    /// ESTALE.
    pub const STALE: Self = Self::new(libc::ESTALE as usize);
}

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Converts the return value of a raw system call.
pub fn check(result: isize) -> Result<usize> {
    if result < 0 {
        Err(Errno::new(result.unsigned_abs()))
    } else {
        Ok(result as usize)
    }
}
