//! Anonymous memory mappings.

use super::errno::{Result, check};
use super::raw::{raw2, raw3, raw6};

/// Maps `len` zero bytes.
#[inline(never)]
pub fn map(len: usize) -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
    check(unsafe { raw6(libc::SYS_mmap, 0, len, open, flags as usize, usize::MAX, 0) })
        .map(|base| base as *mut u8)
}

/// Removes all access to the first `len` bytes of a mapping. An error is ignored.
///
/// # Safety
/// `base` must come from [`map`], and nothing may refer to these bytes.
pub unsafe fn guard(base: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    let _ = check(unsafe {
        raw3(
            libc::SYS_mprotect,
            base as usize,
            len,
            libc::PROT_NONE as usize,
        )
    });
}

/// Removes a mapping.
///
/// # Safety
/// `base` and `len` must be those of [`map`], and nothing may refer to the memory.
#[inline(never)]
pub unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    let _ = check(unsafe { raw2(libc::SYS_munmap, base as usize, len) });
}
