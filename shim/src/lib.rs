//! Preload library that redirects mount(2) calls of a container to the host's mount namespace.
//!
//! The library is loaded into every dynamically linked program of the container. A call that the
//! settings redirect is made on the host or fails. Every other call behaves as without the library.
//!
//! A call enters through `hooks`, which exports the symbols, and continues in `dispatch`. A child
//! process (`child`) resolves the target and asks `policy` for the destination. The child makes a
//! redirected call in the host's namespace (`host`).
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    test,
    allow(dead_code, reason = "the hooks are not exported into the test program")
)]

mod call;
mod child;
mod descriptors;
mod dispatch;
#[cfg(test)]
mod gates;
mod hooks;
mod host;
mod mounts;
mod namespace;
mod next;
mod outcome;
mod policy;
mod redirect;
mod redirected_call;
mod report;
mod scratch;
mod settings;
mod symbol;
mod sys;
mod text;
mod walk;

// The loader calls this symbol when it loads the library (`DT_INIT`, see build.rs). It is hidden, so
// that the library exports the hooks only.
#[cfg(not(test))]
core::arch::global_asm!(
    ".globl spc_shim_init",
    ".hidden spc_shim_init",
    ".type spc_shim_init, %function",
    "spc_shim_init:",
    #[cfg(target_arch = "x86_64")]
    "jmp {}",
    #[cfg(target_arch = "aarch64")]
    "b {}",
    sym initialize,
);

/// Reads the settings before the program can change its environment. The hooks work without this:
/// the constructor of another library may mount earlier.
#[cfg(not(test))]
extern "C" fn initialize() {
    next::resolve_common();
    // SAFETY: the loader calls this once. The C library's constructors have run before, because
    // this library depends on the C library.
    unsafe { settings::take_snapshot() };
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort(3) takes no arguments and does not return.
    unsafe { libc::abort() }
}
