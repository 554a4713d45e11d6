//! This process, and the child that redirects a call.

use core::arch::asm;
use core::ffi::{c_int, c_void};

use super::constants::SYS_PIDFD_OPEN;
use super::errno::{Result, check};
use super::raw::{Fd, raw0, raw2, raw4};

/// Opens a pidfd of this process (Linux 5.3); no /proc is needed.
pub fn pidfd_of_self() -> Result<Fd> {
    // SAFETY: the call takes no pointers.
    check(unsafe { raw2(SYS_PIDFD_OPEN, pid(), 0) }).map(Fd)
}

/// Returns the process ID.
pub fn pid() -> usize {
    // SAFETY: the call takes no pointers.
    unsafe { raw0(libc::SYS_getpid) as usize }
}

/// Returns the real user ID.
pub fn uid() -> usize {
    // SAFETY: the call takes no pointers.
    unsafe { raw0(libc::SYS_getuid) as usize }
}

/// Sets the name of this thread, which ps(1) shows. The last byte must be NUL.
pub fn set_thread_name(name: u64) {
    let name = &raw const name as usize;
    // SAFETY: the kernel reads a string that ends within the word.
    let _ = unsafe { raw2(libc::SYS_prctl, libc::PR_SET_NAME as usize, name) };
}

/// Returns whether this thread has the name that `set_thread_name(name)` gives.
pub fn thread_has_name(name: u64) -> bool {
    let mut found = [0u64; 2];
    let into = found.as_mut_ptr() as usize;
    // SAFETY: the kernel writes 16 bytes.
    let _ = unsafe { raw2(libc::SYS_prctl, libc::PR_GET_NAME as usize, into) };
    found.first() == Some(&name)
}

/// Asks the kernel to kill this process when the thread that created it ends.
pub fn die_with_parent() {
    let signal = libc::SIGKILL as usize;
    // SAFETY: the call takes no pointers, and cannot fail.
    let _ = unsafe { raw2(libc::SYS_prctl, libc::PR_SET_PDEATHSIG as usize, signal) };
}

/// Waits for a child to end. Signals must be blocked, so that none interrupts the call.
pub fn wait(pid: usize) {
    // SAFETY: no status is requested, so the kernel writes nothing.
    let _ = unsafe { raw4(libc::SYS_wait4, pid, 0, libc::__WALL as usize, 0) };
}

/// Guard that blocks all signals in this thread until dropped.
pub struct SignalsBlocked(u64);

impl SignalsBlocked {
    /// Blocks all signals.
    pub fn new() -> Self {
        let all = u64::MAX;
        let mut old = 0u64;
        let how = libc::SIG_SETMASK as usize;
        let (all, into) = (&raw const all as usize, &raw mut old as usize);
        // SAFETY: a signal set of the kernel has eight bytes on these architectures.
        let _ = check(unsafe { raw4(libc::SYS_rt_sigprocmask, how, all, into, 8) });
        Self(old)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: a signal set of the kernel has eight bytes on these architectures.
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

/// Starts `child` in a process that shares the memory of this one, and also the descriptor table if
/// `share_files` is set. The stack ends at `stack_top`, a multiple of 16.
///
/// Returns the child's process ID when the child has released the memory; it may still be ending. The
/// caller must then wait for it.
///
/// # Safety
/// All signals must be blocked. The stack must be large enough and unused. `child` must accept
/// `argument`.
pub unsafe fn spawn(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack_top: *mut u8,
    share_files: bool,
    argument: *mut c_void,
) -> Result<usize> {
    let files = if share_files { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | files;
    let pid: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only the child uses the new stack, and the child never returns from this code. The
    // rest is the caller's contract.
    unsafe {
        asm!("syscall", "test rax, rax", "jne 2f",
            "xor ebp, ebp", "mov rdi, r9", "call r8",
            "mov edi, eax", "mov eax, {exit}", "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone as isize => pid,
            in("rdi") flags as usize, in("rsi") stack_top, in("rdx") 0, in("r10") 0,
            in("r8") child, in("r9") argument,
            lateout("rcx") _, lateout("r11") _);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: only the child uses the new stack, and the child never returns from this code. The
    // rest is the caller's contract.
    unsafe {
        asm!("svc 0", "cbnz x0, 2f",
            "mov x29, 0", "mov x0, x6", "blr x5", "mov x8, {exit}", "svc 0",
            "2:",
            exit = const libc::SYS_exit,
            in("x8") libc::SYS_clone, inlateout("x0") flags as isize => pid,
            in("x1") stack_top, in("x2") 0, in("x3") 0, in("x4") 0,
            in("x5") child, in("x6") argument);
    }
    check(pid)
}
