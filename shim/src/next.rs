//! The next definition of each hooked symbol: the C library's, or that of a library preloaded below this one.
//!
//! Where there is none (older libraries, musl), the system call itself.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spc_shim_config::words::nth_word;

use crate::symbol::{NAMES, NUMBERS, SYSCALL, Symbol};
use crate::sys::{self, Errno, Result};

/// Which symbol the caller used. The same one is called next: a library below this one may make `mount` of
/// `syscall`, and would come back here for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Via {
    Own,
    Syscall,
}

const UNKNOWN: usize = 0;
const ABSENT: usize = 1;
static FOUND: [AtomicUsize; NUMBERS.len()] = [const { AtomicUsize::new(UNKNOWN) }; NUMBERS.len()];

/// Looks up what every C library has. Not the rest: a failed `dlsym` allocates.
pub fn warm() {
    for symbol in 0..=SYSCALL {
        find(symbol);
    }
}

fn found(at: usize) -> usize {
    FOUND.get(at).map_or(ABSENT, |slot| slot.load(Relaxed))
}

#[inline(never)]
fn find(at: usize) -> usize {
    let mut address = found(at);
    if address != UNKNOWN {
        return address;
    }
    address = ABSENT;
    let dlsym = sys::dlsym_address();
    if dlsym != 0 {
        type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
        // SAFETY: the address of dlsym, which has this type.
        let dlsym = unsafe { core::mem::transmute::<usize, Dlsym>(dlsym) };
        // SAFETY: a pseudo handle and a string: each word of the list ends with NUL.
        address = unsafe { dlsym(libc::RTLD_NEXT, nth_word(NAMES, at).as_ptr().cast()) } as usize;
        address = address.max(ABSENT);
    }
    if let Some(slot) = FOUND.get(at) {
        slot.store(address, Relaxed);
    }
    address
}

/// Calls the next definition, or the system call. All arguments are integers and pointers, each in a register
/// of its own on x86_64 and aarch64, so one type serves all symbols.
#[inline(never)]
pub fn call(via: Via, symbol: Symbol, [a, b, c, d, e]: [usize; 5]) -> Result<usize> {
    type Next = unsafe extern "C" fn(usize, usize, usize, usize, usize) -> c_int;
    let address = match via {
        Via::Own => find(symbol as usize),
        Via::Syscall => ABSENT,
    };
    let result = if address > ABSENT {
        // SAFETY: the address of this symbol, which can be called like that.
        let next = unsafe { core::mem::transmute::<usize, Next>(address) };
        // SAFETY: the arguments are the caller's own, or made to the same rules.
        c_long::from(unsafe { next(a, b, c, d, e) })
    } else {
        syscall(c_long::from(symbol.number()), a, b, c, d, e, 0)
    };
    match result {
        ..0 => Err(Errno::new(sys::errno() as usize)),
        result => Ok(result as usize),
    }
}

/// A system call with the C library's result and errno. Never looks the symbol up: any program may be here at
/// any time, with the loader's lock held by somebody who waits for it.
#[inline(never)]
pub fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let address = found(SYSCALL);
    if address > ABSENT {
        type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;
        // SAFETY: the address of syscall, which has this type.
        let next = unsafe { core::mem::transmute::<usize, Syscall>(address) };
        // SAFETY: the caller's own arguments.
        return unsafe { next(number, a, b, c, d, e, f) };
    }
    // SAFETY: the caller's own arguments.
    match unsafe { sys::raw6(number, a, b, c, d, e, f) } {
        error @ -4095..0 => {
            sys::set_errno(-error as c_int);
            -1
        }
        result => result as c_long,
    }
}
