//! What is the caller's: its strings, its errno, its environment, its C library.

use core::arch::asm;
use core::ffi::{c_char, c_int};

use super::errno::{Errno, Result, check};
use super::raw::raw4;
use crate::text::Text;

/// Copies the caller's string; a null pointer is an empty one. A bad pointer is an error here and not a crash, as
/// it would be in the kernel, and so is a string that the kernel would not take for its length.
#[inline(never)]
pub fn copy_string_or_none(from: *const c_char, into: &mut Text) -> Result<()> {
    const PAGE: usize = 4096;
    into.clear();
    let mut at = from.cast::<u8>();
    while !from.is_null() {
        if at == from.cast() || (at as usize).is_multiple_of(PAGE) {
            is_readable(at)?;
        }
        // SAFETY: the page was readable a moment ago; a caller that unmaps it meanwhile breaks its own promise.
        let byte = unsafe { at.read() };
        if byte == 0 {
            break;
        }
        if at as usize - from as usize >= libc::PATH_MAX as usize - 1 {
            return Err(Errno::NAMETOOLONG);
        }
        into.push_byte(byte);
        at = at.wrapping_add(1);
    }
    Ok(())
}

/// Whether the caller's string is empty, or there is none.
pub fn is_empty(from: *const c_char) -> Result<bool> {
    if from.is_null() {
        return Ok(true);
    }
    is_readable(from.cast())?;
    // SAFETY: readable a moment ago.
    Ok(unsafe { from.read() } == 0)
}

/// Reads the 64-bit word number `index` of the caller's structure.
pub fn copy_word(from: usize, index: usize) -> Result<u64> {
    let at = from.wrapping_add(8 * index) as *const u8;
    is_readable(at)?;
    // SAFETY: the word was readable a moment ago; the kernel's structures are aligned to it.
    Ok(unsafe { at.cast::<u64>().read_unaligned() })
}

/// The kernel reads a signal set before it looks at `how`: EFAULT or EINVAL, and nothing is changed.
#[inline(never)]
fn is_readable(at: *const u8) -> Result<()> {
    let word = at as usize & !7;
    // No set at all is not read, and no error.
    if word == 0 {
        return Err(Errno::FAULT);
    }
    // SAFETY: `how` is invalid, so the call has no effect.
    match check(unsafe { raw4(libc::SYS_rt_sigprocmask, usize::MAX, word, 0, 8) }) {
        Err(Errno::FAULT) => Err(Errno::FAULT),
        _ => Ok(()),
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// This thread's errno.
#[inline(never)]
pub fn errno() -> c_int {
    // SAFETY: the C library's pointer is valid for this thread.
    unsafe { *__errno_location() }
}

#[inline(never)]
pub fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *__errno_location() = value }
}

/// The value of this variable, if there is one, and if the program does not run with more rights than who started it.
///
/// # Safety
/// The name is followed by a NUL, and the value is not used after the program may have changed it.
pub unsafe fn environment<'a>(name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    let value = unsafe { secure_getenv(name.as_ptr().cast()) };
    if value.is_null() {
        return None;
    }
    let mut len = 0;
    // Not `CStr`, which would be one more import: hence also not a loop that the compiler knows by that name.
    // SAFETY: a string of the C library, up to its NUL.
    unsafe {
        while value.add(len).read_volatile() != 0 {
            len += 1;
        }
        Some(core::slice::from_raw_parts(value.cast(), len))
    }
}

/// `dlsym`, or 0. A weak reference: before glibc 2.34 it is in a library of its own, which not every program
/// has. The oldest version, so that the library loads into old ones.
pub fn dlsym_address() -> usize {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.2.5", ".weak dlsym", "mov {}, qword ptr [rip + dlsym@GOTPCREL]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.17", ".weak dlsym", "adrp {0}, :got:dlsym", "ldr {0}, [{0}, :got_lo12:dlsym]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    // mount(8) asks for mount_setattr(2) without any attributes, to see whether there is such a call.
    #[test]
    fn what_cannot_be_read_is_an_error() {
        let words = [1_u64, 2];
        assert_eq!(copy_word(words.as_ptr() as usize, 1), Ok(2));
        for nowhere in [0_usize, 1, 4096] {
            assert_eq!(copy_word(nowhere, 0), Err(Errno::FAULT));
        }
    }
}
