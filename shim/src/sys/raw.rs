//! System calls by their number of arguments, and what they hand out.

use core::arch::asm;
use core::ffi::{c_int, c_long};

use super::errno::check;

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

/// An open file that is closed when it goes out of use.
pub struct Fd(pub(super) usize);

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
