//! Exported symbols, as listed in `exports.txt`. Each passes its arguments on to the dispatcher.

use core::ffi::{c_int, c_long};

use crate::dispatch::{EntryPoint, dispatch};
use crate::next::{self, Via};
use crate::symbol::Symbol;

/// Defines hooks. Every argument is a word: integers and pointers arrive in one register each, and
/// only an `int` needs sign extension.
macro_rules! hooks {
    ($($name:ident $symbol:ident ($($argument:ident: $type:ty),*) $($none:literal)*;)*) => { $(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            let entry = EntryPoint { symbol: Symbol::$symbol, via: Via::Wrapper };
            dispatch($($argument as usize,)* $($none,)* entry) as c_int
        }
    )* };
}

hooks! {
    mount Mount(source: usize, target: usize, fs_type: usize, flags: usize, data: usize);
    umount Umount(target: usize) 0 0 0 0;
    umount2 Umount2(target: usize, flags: c_int) 0 0 0;
    fsopen Fsopen(fs_type: usize, flags: c_int) 0 0 0;
    fsmount Fsmount(context: c_int, flags: c_int, attributes: c_int) 0 0;
    move_mount MoveMount(from_dir: c_int, from: usize, to_dir: c_int, to: usize, flags: c_int);
    open_tree OpenTree(dir: c_int, path: usize, flags: c_int) 0 0;
    mount_setattr MountSetattr(
        dir: c_int, path: usize, flags: c_int, attributes: usize, size: usize
    );
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
