//! Carries mount(2) calls of a container into the host's mount namespace.
//!
//! Preloaded into every program of the container. A call that the settings send to the host happens there, or
//! fails; every other call is made as if this library were not there. `hooks` has the exported symbols,
//! `dispatch` is where they meet, `policy` decides, `child` makes a call on the host.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    test,
    allow(dead_code, reason = "the hooks are not exported into the test program")
)]

mod area;
mod call;
mod child;
mod claim;
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
mod redirected_call;
mod report;
mod settings;
mod symbol;
mod sys;
mod text;
mod walk;
mod watch;

#[cfg(not(test))]
ctor::declarative::ctor! {
    /// Reads the settings before the program can change its environment. Nothing depends on it: a constructor
    /// of another library may mount earlier.
    #[ctor(unsafe)]
    fn warm() {
        next::warm();
        // The C library's own constructor has run: this library needs it, so it comes later.
        // SAFETY: a constructor runs once.
        unsafe { settings::keep() };
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes no arguments and does not return.
    unsafe { libc::abort() }
}
