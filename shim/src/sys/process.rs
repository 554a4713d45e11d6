//! This process, and the child that makes a crossing.

use core::arch::asm;
use core::ffi::{c_int, c_void};

use super::constants::SYS_PIDFD_OPEN;
use super::errno::{Errno, Result, check};
use super::raw::{Fd, raw0, raw2, raw4};

/// A handle of this process that needs no /proc (Linux 5.3).
pub fn pidfd_of_self() -> Result<Fd> {
    // SAFETY: takes no memory.
    check(unsafe { raw2(SYS_PIDFD_OPEN, pid() as usize, 0) }).map(Fd)
}

pub fn pid() -> c_int {
    // SAFETY: takes no memory.
    unsafe { raw0(libc::SYS_getpid) as c_int }
}

/// Names this thread, as ps(1) shows it.
pub fn set_mark(mark: [u64; 2]) {
    // SAFETY: the kernel reads a string of at most 16 bytes.
    let _ = unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_SET_NAME as usize,
            mark.as_ptr() as usize,
        )
    };
}

/// Whether this thread's name begins like that.
pub fn has_mark(mark: u64) -> bool {
    let mut found = [0u64; 2];
    // SAFETY: the kernel writes 16 bytes.
    let _ = unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_GET_NAME as usize,
            found.as_mut_ptr() as usize,
        )
    };
    found.first() == Some(&mark)
}

/// The kernel kills this process when the thread that made it ends.
pub fn die_with_parent() -> Result<()> {
    // SAFETY: takes no memory.
    check(unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_SET_PDEATHSIG as usize,
            libc::SIGKILL as usize,
        )
    })
    .map(drop)
}

pub fn wait(pid: c_int) {
    // SAFETY: asks for no status, so nothing is written.
    while check(unsafe { raw4(libc::SYS_wait4, pid as usize, 0, libc::__WALL as usize, 0) })
        == Err(Errno::INTR)
    {}
}

/// All signals blocked in this thread until dropped.
pub struct SignalsBlocked(u64);

impl SignalsBlocked {
    pub fn new() -> Self {
        let all = u64::MAX;
        let mut old = 0u64;
        let how = libc::SIG_SETMASK as usize;
        let (all, into) = (&raw const all as usize, &raw mut old as usize);
        // SAFETY: the kernel's signal set is eight bytes on these architectures.
        let _ = check(unsafe { raw4(libc::SYS_rt_sigprocmask, how, all, into, 8) });
        Self(old)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = check(unsafe {
            raw4(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK as usize,
                &raw const self.0 as usize,
                0,
                8,
            )
        });
    }
}

/// Starts `child` as a process that shares this one's memory and has everything else of its own, on the stack
/// that ends at `stack_top`, a multiple of 16. Goes on when the child has done with the memory; it is to be waited for.
///
/// # Safety
/// All signals are blocked; the stack is big enough and of nobody else; `argument` is what `child` expects.
pub unsafe fn spawn(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack_top: *mut u8,
    share_files: bool,
    argument: *mut c_void,
) -> Result<c_int> {
    let files = if share_files { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | files;
    let pid: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only the child has the new stack, and it never comes back from there. The rest is the caller's promise.
    unsafe {
        asm!("syscall", "test rax, rax", "jne 2f",
            "xor ebp, ebp", "mov rdi, r9", "call r8", "mov edi, eax", "mov eax, {exit}", "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone as isize => pid,
            in("rdi") flags as usize, in("rsi") stack_top, in("rdx") 0, in("r10") 0, in("r8") child, in("r9") argument,
            lateout("rcx") _, lateout("r11") _);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", "cbnz x0, 2f",
            "mov x29, 0", "mov x0, x6", "blr x5", "mov x8, {exit}", "svc 0",
            "2:",
            exit = const libc::SYS_exit,
            in("x8") libc::SYS_clone, inlateout("x0") flags as isize => pid,
            in("x1") stack_top, in("x2") 0, in("x3") 0, in("x4") 0, in("x5") child, in("x6") argument);
    }
    check(pid).map(|pid| pid as c_int)
}
