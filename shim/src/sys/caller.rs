//! State of the calling program: strings, errno, environment, C library.

use core::arch::asm;
use core::ffi::{c_char, c_int};

use super::errno::{Errno, Result, check};
use super::raw::raw4;
use crate::text::Text;

/// Copies a string of the caller. A null pointer gives an empty text.
///
/// Fails as the kernel does: with EFAULT for an invalid pointer, with ENAMETOOLONG for a string
/// that is too long.
#[inline(never)]
pub fn copy_string(from: usize, into: &mut Text) -> Result<()> {
    const PAGE: usize = 4096;
    into.clear();
    if from == 0 {
        return Ok(());
    }
    let mut at = from;
    loop {
        if at == from || at.is_multiple_of(PAGE) {
            check_readable(at as *const u8)?;
        }
        // SAFETY: the page was readable just now. A caller that unmaps it concurrently would make
        // the system call fail in the same way.
        let byte = unsafe { (at as *const u8).read() };
        if byte == 0 {
            return Ok(());
        }
        if at - from >= libc::PATH_MAX as usize - 1 {
            return Err(Errno::NAMETOOLONG);
        }
        into.push_byte(byte);
        at = at.wrapping_add(1);
    }
}

/// Reads the 64-bit word number `index` of a structure of the caller.
pub fn copy_word(from: usize, index: usize) -> Result<u64> {
    let at = from.wrapping_add(8 * index) as *const u8;
    check_readable(at)?;
    // SAFETY: the word was readable just now, and the kernel's structures are aligned to it.
    Ok(unsafe { at.cast::<u64>().read_unaligned() })
}

/// Fails with EFAULT unless the word at this address is readable.
///
/// Uses rt_sigprocmask(2) with an invalid `how`. The kernel reads the signal set first, so the call
/// fails with EFAULT or EINVAL and changes nothing.
#[inline(never)]
fn check_readable(at: *const u8) -> Result<()> {
    let word = at as usize & !7;
    // The kernel accepts a null pointer as no signal set.
    if word == 0 {
        return Err(Errno::FAULT);
    }
    // SAFETY: the call has no effect, because `how` is invalid.
    match check(unsafe { raw4(libc::SYS_rt_sigprocmask, usize::MAX, word, 0, 8) }) {
        Err(Errno::FAULT) => Err(Errno::FAULT),
        _ => Ok(()),
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// Returns the errno of this thread.
#[inline(never)]
pub fn errno() -> c_int {
    // SAFETY: the C library's pointer is valid for this thread.
    unsafe { *__errno_location() }
}

/// Sets the errno of this thread.
#[inline(never)]
pub fn set_errno(value: c_int) {
    // SAFETY: the C library's pointer is valid for this thread.
    unsafe { *__errno_location() = value }
}

/// Returns the value of an environment variable. Returns `None` if there is none, or if the program
/// is set-user-ID (secure_getenv(3)).
///
/// # Safety
/// A NUL must follow the name, and the value must not be used after the program may have changed
/// it.
pub unsafe fn environment<'a>(name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: the caller's contract.
    let value = unsafe { secure_getenv(name.as_ptr().cast()) };
    if value.is_null() {
        return None;
    }
    let mut len = 0;
    // `CStr` would import strlen(3), and so would a loop that the compiler recognises as strlen(3).
    // SAFETY: the C library returned a string, which is read up to its NUL.
    unsafe {
        while value.add(len).read_volatile() != 0 {
            len += 1;
        }
        Some(core::slice::from_raw_parts(value.cast(), len))
    }
}

/// Returns the address of dlsym(3), or 0 if the program has none.
///
/// The reference is weak: before glibc 2.34, dlsym(3) is in a library that not every program loads.
/// The version is the oldest, so that old C libraries can load the shim.
pub fn dlsym_address() -> usize {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the code reads one entry of the global offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.2.5", ".weak dlsym",
            "mov {}, qword ptr [rip + dlsym@GOTPCREL]",
            out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the code reads one entry of the global offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.17", ".weak dlsym",
            "adrp {0}, :got:dlsym", "ldr {0}, [{0}, :got_lo12:dlsym]",
            out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    // mount(8) calls mount_setattr(2) with a null pointer, to find out whether the kernel has the
    // call.
    #[test]
    fn an_unreadable_word_is_an_error() {
        let words = [1_u64, 2];
        assert_eq!(copy_word(words.as_ptr() as usize, 1), Ok(2));
        for nowhere in [0_usize, 1, 4096] {
            assert_eq!(copy_word(nowhere, 0), Err(Errno::FAULT));
        }
    }
}
