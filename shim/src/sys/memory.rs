//! Memory of our own.

use super::errno::{Result, check};
use super::raw::{raw2, raw3, raw6};

/// Maps `len` zero bytes.
#[inline(never)]
pub fn map(len: usize) -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    check(unsafe { raw6(libc::SYS_mmap, 0, len, open, flags as usize, usize::MAX, 0) })
        .map(|base| base as *mut u8)
}

/// Takes all access to the first `len` bytes of a mapping away, if the kernel has room to note it.
///
/// # Safety
/// `base` is of [`map`], and nothing refers to these bytes.
pub unsafe fn guard(base: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = check(unsafe {
        raw3(
            libc::SYS_mprotect,
            base as usize,
            len,
            libc::PROT_NONE as usize,
        )
    });
}

/// # Safety
/// `base` and `len` are those of [`map`], and nothing refers to the memory any more.
pub unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = check(unsafe { raw2(libc::SYS_munmap, base as usize, len) });
}
