//! Exported symbols, as listed in `exports.txt`. Each passes its arguments on to the dispatcher.

use core::arch::naked_asm;
use core::ffi::{c_int, c_long};

use crate::call::Via;
use crate::dispatch::{EntryPoint, dispatch};
use crate::next;
use crate::symbol::{self, Symbol};
use crate::sys;

/// Defines hooks. Every argument is a word: integers and pointers arrive in one register each. The
/// upper half of an `int`, and an argument that the symbol does not have, is undefined. Neither is
/// used, except by umount(2), which has no flags.
macro_rules! hooks {
    ($($name:ident $symbol:ident $($flags:literal)?;)*) => { $(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        unsafe extern "C" fn $name(a: usize, b: usize, c: usize, d: usize, e: usize) -> c_int {
            $(let b = b & $flags;)?
            let entry = EntryPoint { symbol: Symbol::$symbol, via: Via::Wrapper };
            dispatch(a, b, c, d, e, entry) as c_int
        }
    )* };
}

hooks! {
    mount Mount;
    umount Umount 0;
    umount2 Umount2;
    fsopen Fsopen;
    fsmount Fsmount;
    move_mount MoveMount;
    open_tree OpenTree;
    mount_setattr MountSetattr;
}

/// Hook of syscall(2). The function is variadic in C. On x86_64 and aarch64 its arguments arrive
/// where seven fixed ones do, and stay there: a call of another number costs ten instructions. The
/// numbers of mount(2) and umount2(2) are neighbours, and the others are among the newer calls.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
unsafe extern "C" fn syscall(_: c_long) -> c_long {
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        "lea rax, [rdi - {new}]",
        "cmp rax, {new_count}",
        "jb {by_number}",
        "lea rax, [rdi - {old}]",
        "cmp rax, 2",
        "jb {by_number}",
        "mov rax, [rip + {addresses} + 8 * {syscall}]",
        "cmp rax, {absent}",
        "jbe {without_library}",
        "jmp rax",
        new = const sys::SYS_OPEN_TREE,
        new_count = const NEW_COUNT,
        old = const libc::SYS_mount,
        by_number = sym by_number,
        addresses = sym next::ADDRESSES,
        syscall = const symbol::SYSCALL,
        absent = const next::ABSENT,
        without_library = sym next::without_library,
    );
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "sub x9, x0, {new}",
        "cmp x9, {new_count}",
        "b.lo {by_number}",
        "sub x9, x0, {old}",
        "cmp x9, 2",
        "b.lo {by_number}",
        "adrp x9, {addresses} + 8 * {syscall}",
        "ldr x9, [x9, :lo12:{addresses} + 8 * {syscall}]",
        "cmp x9, {absent}",
        "b.ls {without_library}",
        "br x9",
        new = const sys::SYS_OPEN_TREE,
        new_count = const NEW_COUNT,
        old = const libc::SYS_umount2,
        by_number = sym by_number,
        addresses = sym next::ADDRESSES,
        syscall = const symbol::SYSCALL,
        absent = const next::ABSENT,
        without_library = sym next::without_library,
    );
}

/// Length of the range of numbers that contains the newer system calls.
const NEW_COUNT: u16 = sys::SYS_OPEN_TREE_ATTR - sys::SYS_OPEN_TREE + 1;

#[inline(never)]
extern "C" fn by_number(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the number is in one of the ranges that the hook of syscall(2) looks for.
    match unsafe { Symbol::from_syscall_number(number) } {
        Some(symbol) => {
            let via = Via::Syscall;
            dispatch(a, b, c, d, e, EntryPoint { symbol, via }) as c_long
        }
        None => next::syscall(number, a, b, c, d, e, f),
    }
}
