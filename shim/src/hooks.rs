//! The exported symbols. `exports.txt` lists them; each collects its arguments for the dispatcher.

use core::ffi::{c_int, c_long};

use crate::dispatch::{Door, dispatch};
use crate::next::{self, Via};
use crate::symbol::Symbol;

/// Arguments are words: integers and pointers arrive in a register each, and only `int` needs its sign.
macro_rules! hooks {
    ($($name:ident $symbol:ident ($($argument:ident: $type:ty),*) $($none:literal)*;)*) => { $(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            let door = Door { symbol: Symbol::$symbol, via: Via::Own };
            dispatch($($argument as usize,)* $($none,)* door) as c_int
        }
    )* };
}

hooks! {
    mount Mount(source: usize, target: usize, kind: usize, flags: usize, data: usize);
    umount Umount(target: usize) 0 0 0 0;
    umount2 Umount2(target: usize, flags: c_int) 0 0 0;
    fsopen Fsopen(kind: usize, flags: c_int) 0 0 0;
    fsmount Fsmount(context: c_int, flags: c_int, attributes: c_int) 0 0;
    move_mount MoveMount(from_dir: c_int, from: usize, to_dir: c_int, to: usize, flags: c_int);
    open_tree OpenTree(dir: c_int, path: usize, flags: c_int) 0 0;
    mount_setattr MountSetattr(dir: c_int, path: usize, flags: c_int, attributes: usize, size: usize);
}

/// Variadic in C; on x86_64 and aarch64 seven fixed arguments arrive in the same places.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    match Symbol::of_number(number) {
        Some(symbol) => {
            let via = Via::Syscall;
            dispatch(a, b, c, d, e, Door { symbol, via }) as c_long
        }
        None => next::syscall(number, a, b, c, d, e, f),
    }
}
