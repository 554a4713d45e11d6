//! Next definition of each hooked symbol: of a library preloaded below this one, or of the C
//! library.
//!
//! A symbol without one (older C libraries, musl) stands for its system call.

use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spc_shim_config::words::nth_word;

use crate::call::{Call, Via};
use crate::symbol::{NAMES, NUMBERS, SYSCALL};
use crate::sys::{self, Errno, Result};

/// Address of a symbol that has not been looked up.
const UNKNOWN: usize = 0;
/// Address of a symbol without a next definition.
pub const ABSENT: usize = 1;
/// Address of the next definition of each symbol in [`NAMES`].
pub static ADDRESSES: [AtomicUsize; NUMBERS.len()] =
    [const { AtomicUsize::new(UNKNOWN) }; NUMBERS.len()];

/// Looks up the symbols that every C library has. Others wait until they are called, because a
/// failed dlsym(3) allocates memory.
pub fn resolve_common() {
    for symbol in 0..SYSCALL + 1 {
        resolve(symbol);
    }
}

fn cached_address(index: usize) -> usize {
    ADDRESSES
        .get(index)
        .map_or(ABSENT, |slot| slot.load(Relaxed))
}

/// Returns the address of the next definition, or [`ABSENT`].
#[inline(never)]
fn resolve(index: usize) -> usize {
    let mut address = cached_address(index);
    if address != UNKNOWN {
        return address;
    }
    address = ABSENT;
    let dlsym = sys::dlsym_address();
    if dlsym != 0 {
        type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
        // SAFETY: the address is that of dlsym(3), which has this type.
        let dlsym = unsafe { core::mem::transmute::<usize, Dlsym>(dlsym) };
        // SAFETY: the arguments are a pseudo handle and a string: a NUL ends each name in the list.
        address =
            unsafe { dlsym(libc::RTLD_NEXT, nth_word(NAMES, index).as_ptr().cast()) } as usize;
        address = address.max(ABSENT);
    }
    if let Some(slot) = ADDRESSES.get(index) {
        slot.store(address, Relaxed);
    }
    address
}

/// Calls the next definition, or makes the system call.
///
/// All arguments are integers and pointers. On x86_64 and aarch64 each is passed in a register of
/// its own, so one function type serves all symbols.
#[inline(never)]
pub fn call(call: &Call) -> Result<usize> {
    type Next = unsafe extern "C" fn(usize, usize, usize, usize, usize) -> c_int;
    let [a, b, c, d, e] = call.args;
    let address = match call.via {
        Via::Wrapper => resolve(call.symbol as usize),
        Via::Syscall => ABSENT,
    };
    let result = if address > ABSENT {
        // SAFETY: the address is that of this symbol, which can be called with this type.
        let next = unsafe { core::mem::transmute::<usize, Next>(address) };
        // SAFETY: the arguments are the caller's, or satisfy the same rules.
        c_long::from(unsafe { next(a, b, c, d, e) })
    } else {
        syscall(c_long::from(call.symbol.syscall_number()), a, b, c, d, e, 0)
    };
    match result {
        ..0 => Err(Errno::new(sys::errno() as usize)),
        result => Ok(result as usize),
    }
}

/// Makes a system call with the result and errno of the C library's syscall(2).
///
/// Does not look the symbol up. The caller may be in any state: the holder of the loader's lock may
/// be waiting for the caller.
#[unsafe(naked)]
pub extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // The arguments stay where they are.
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        "mov rax, [rip + {addresses} + 8 * {syscall}]",
        "cmp rax, {absent}",
        "jbe {without_library}",
        "jmp rax",
        addresses = sym ADDRESSES,
        syscall = const SYSCALL,
        absent = const ABSENT,
        without_library = sym without_library,
    );
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "adrp x9, {addresses} + 8 * {syscall}",
        "ldr x9, [x9, :lo12:{addresses} + 8 * {syscall}]",
        "cmp x9, {absent}",
        "b.ls {without_library}",
        "br x9",
        addresses = sym ADDRESSES,
        syscall = const SYSCALL,
        absent = const ABSENT,
        without_library = sym without_library,
    );
}

/// Makes a system call where the C library has no syscall(2).
#[inline(never)]
pub extern "C" fn without_library(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the arguments are the caller's.
    match unsafe { sys::raw6(number, a, b, c, d, e, f) } {
        error @ -4095..0 => {
            sys::set_errno(-error as c_int);
            -1
        }
        result => result as c_long,
    }
}
