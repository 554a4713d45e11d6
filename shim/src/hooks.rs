//! Exported symbols, as listed in `exports.txt`. Each passes its arguments on to the dispatcher.

use core::ffi::{c_int, c_long};

use crate::dispatch::{EntryPoint, dispatch};
use crate::next::{self, Via};
use crate::symbol::Symbol;

/// Defines hooks. Every argument is a word: integers and pointers arrive in one register each. The
/// upper half of an `int` is undefined, and is never used.
macro_rules! hooks {
    ($($name:ident $symbol:ident ($($argument:ident),*) $($none:literal)*;)*) => { $(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        unsafe extern "C" fn $name($($argument: usize),*) -> c_int {
            let entry = EntryPoint { symbol: Symbol::$symbol, via: Via::Wrapper };
            dispatch($($argument,)* $($none,)* entry) as c_int
        }
    )* };
}

hooks! {
    mount Mount(source, target, fs_type, flags, data);
    umount Umount(target) 0 0 0 0;
    umount2 Umount2(target, flags) 0 0 0;
    fsopen Fsopen(fs_type, flags) 0 0 0;
    fsmount Fsmount(context, flags, attributes) 0 0;
    move_mount MoveMount(from_dir, from, to_dir, to, flags);
    open_tree OpenTree(dir, path, flags) 0 0;
    mount_setattr MountSetattr(dir, path, flags, attributes, size);
}

/// Hook of syscall(2). The function is variadic in C; on x86_64 and aarch64 its arguments arrive
/// where seven fixed ones do.
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
    match Symbol::from_syscall_number(number) {
        Some(symbol) => {
            let via = Via::Syscall;
            dispatch(a, b, c, d, e, EntryPoint { symbol, via }) as c_long
        }
        None => next::syscall(number, a, b, c, d, e, f),
    }
}
