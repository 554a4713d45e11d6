//! Raw system calls, and the little of the C library that has to be shared with the caller.
//!
//! Raw, because the functions of the C library are what this library replaces, and may be replaced by others.

use core::arch::asm;
use core::ffi::{c_int, c_long};
use core::num::NonZero;

mod caller;
mod files;
mod memory;
mod mounts;
mod process;

pub use caller::*;
pub use files::*;
pub use memory::*;
pub use mounts::*;
pub use process::*;

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

// New mount API and its neighbours: the same numbers on every architecture, and absent from older headers.
pub const SYS_OPEN_TREE: u16 = 428;
pub const SYS_MOVE_MOUNT: u16 = 429;
pub const SYS_FSOPEN: u16 = 430;
pub const SYS_FSMOUNT: u16 = 432;
const SYS_FSCONFIG: c_long = 431;
const SYS_FSPICK: c_long = 433;
const SYS_PIDFD_OPEN: c_long = 434;
const SYS_OPENAT2: c_long = 437;
pub const SYS_MOUNT_SETATTR: u16 = 442;
const SYS_STATMOUNT: c_long = 457;
const STATMOUNT_FS_TYPE: u64 = 0x20;
/// Linux 6.13.
pub const STATMOUNT_FS_SUBTYPE: u64 = 0x100;

pub const OPEN_TREE_CLONE: u32 = 1;
pub const MOVE_MOUNT_F_SYMLINKS: u32 = 0x1;
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
pub const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
pub const MOVE_MOUNT_BENEATH: u32 = 0x200;
pub const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;

pub const CWD: c_int = libc::AT_FDCWD;
const PATH_FD: c_int = libc::O_PATH | libc::O_CLOEXEC;

/// Raw system calls by their number of arguments.
macro_rules! raw_calls {
    ($($name:ident($($argument:ident $x86_64:tt $aarch64:tt),*);)*) => { $(
        /// # Safety
        /// As unsafe as the system call made.
        #[inline(always)]
        pub unsafe fn $name(number: c_long, $($argument: usize),*) -> isize {
            let result;
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the kernel changes rax, rcx and r11 only; the rest is the caller's promise.
            unsafe {
                asm!("syscall", inlateout("rax") number as isize => result, $(in($x86_64) $argument,)*
                    lateout("rcx") _, lateout("r11") _, options(nostack));
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the kernel changes x0 only; the rest is the caller's promise.
            unsafe {
                asm!("svc 0", in("x8") number, $(in($aarch64) $argument,)* lateout("x0") result, options(nostack));
            }
            result
        }
    )* };
}

raw_calls! {
    raw0();
    raw1(a "rdi" "x0");
    raw2(a "rdi" "x0", b "rsi" "x1");
    raw3(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2");
    raw4(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3");
    raw5(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3", e "r8" "x4");
    raw6(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3", e "r8" "x4", f "r9" "x5");
}

pub fn check(result: isize) -> Result<usize> {
    if result < 0 {
        Err(Errno::new(result.unsigned_abs()))
    } else {
        Ok(result as usize)
    }
}

/// An open file that is closed when it goes out of use.
pub struct Fd(usize);

impl Fd {
    /// Leaves it open.
    pub fn into_raw(self) -> c_int {
        core::mem::ManuallyDrop::new(self).raw()
    }

    pub fn raw(&self) -> c_int {
        self.0 as c_int
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        close(self.raw());
    }
}

/// Closes a descriptor that nothing uses any more.
#[inline(never)]
pub fn close(fd: c_int) {
    // SAFETY: takes no memory.
    let _ = check(unsafe { raw1(libc::SYS_close, fd as usize) });
}
