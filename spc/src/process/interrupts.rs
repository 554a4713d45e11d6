//! Termination signals: blocked, and read from a signalfd(2) where it is safe to stop.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Class, Error, Reason, Result};

/// Blocked termination signals, read through a signalfd(2).
pub struct Interrupts {
    signals: SignalFd,
    received: AtomicBool,
    server_lost: AtomicBool,
}

impl Interrupts {
    /// Blocks SIGINT, SIGTERM and SIGHUP in the calling thread. Call before starting other threads.
    ///
    /// # Errors
    /// The kernel cannot create a signalfd.
    pub fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [NixSignal::SIGINT, NixSignal::SIGTERM, NixSignal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map(|signals| Self {
                signals,
                received: AtomicBool::new(false),
                server_lost: AtomicBool::new(false),
            })
            .map_err(|e| Error::system("cannot watch for signals").because(e))
    }

    /// Fails if a signal is pending, or while the "server lost" flag is set.
    ///
    /// # Errors
    /// [`Class::Interrupted`] once per signal; [`Reason::NoAnswer`] while the flag is set.
    pub fn check(&self) -> Result<()> {
        match self.signals.read_signal() {
            Ok(Some(info)) => {
                self.received.store(true, Ordering::Relaxed);
                Err(Error::new(
                    Class::Interrupted,
                    format!("stopped by signal {}", info.ssi_signo),
                ))
            }
            _ if self.server_lost.load(Ordering::Relaxed) => {
                Err(Error::mount("the server stopped responding").reason_is(Reason::NoAnswer))
            }
            _ => Ok(()),
        }
    }

    /// Sets or clears the "server lost" flag; while it is set, [`check`](Self::check) fails.
    pub fn set_server_lost(&self, is_lost: bool) {
        self.server_lost.store(is_lost, Ordering::Relaxed);
    }

    /// Returns whether any thread has read a termination signal.
    pub fn any_received(&self) -> bool {
        self.received.load(Ordering::Relaxed)
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Returns the error for a signal that another thread has read.
pub(crate) fn stopped_elsewhere() -> Error {
    Error::new(Class::Interrupted, "stopped by a signal")
}
