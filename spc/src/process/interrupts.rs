//! Termination signals, blocked and read where it is safe to stop.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Class, Error, Reason, Result};

/// Termination signals, held back and looked at where it is safe to stop.
pub struct Interrupts {
    signals: SignalFd,
    came: AtomicBool,
    lost: AtomicBool,
}

impl Interrupts {
    /// Blocks SIGINT, SIGTERM and SIGHUP. Call it before any thread is started.
    ///
    /// # Errors
    /// The kernel refuses a signalfd.
    pub fn hold() -> Result<Self> {
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
                came: AtomicBool::new(false),
                lost: AtomicBool::new(false),
            })
            .map_err(|e| Error::system("cannot watch for signals").because(e))
    }

    /// Fails if a signal has come, or while the server is lost.
    ///
    /// # Errors
    /// [`Class::Interrupted`], once per signal.
    pub fn check(&self) -> Result<()> {
        match self.signals.read_signal() {
            Ok(Some(info)) => {
                self.came.store(true, Ordering::Relaxed);
                Err(Error::new(
                    Class::Interrupted,
                    format!("stopped by signal {}", info.ssi_signo),
                ))
            }
            _ if self.lost.load(Ordering::Relaxed) => {
                Err(Error::mount("its server does not answer any more").reason_is(Reason::NoAnswer))
            }
            _ => Ok(()),
        }
    }

    /// What is done now cannot come to its end, for its server is gone; or that is over.
    pub fn lost(&self, is: bool) {
        self.lost.store(is, Ordering::Relaxed);
    }

    /// Whether one has come at all, perhaps to another thread.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

pub(crate) fn stopped_elsewhere() -> Error {
    Error::new(Class::Interrupted, "stopped by a signal")
}
