//! Time limit and cancellation of a wait, combined in one value.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::process::interrupts::Interrupts;

/// Ends a wait: at a deadline, or earlier at a signal or when a check fails.
#[derive(Clone, Copy)]
pub struct CancelToken<'a> {
    deadline: Instant,
    source: Source<'a>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    None,
    Interrupts(&'a Interrupts),
    Check(&'a dyn Fn() -> Result<()>),
}

impl CancelToken<'_> {
    /// Creates a token that only expires.
    pub fn at(deadline: Instant) -> Self {
        Self {
            deadline,
            source: Source::None,
        }
    }

    /// Returns the deadline.
    pub fn deadline(self) -> Instant {
        self.deadline
    }

    /// Returns the time until the deadline; zero after it.
    pub fn remaining(self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns whether the deadline has passed.
    pub fn is_expired(self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Fails if the wait is cancelled. Does not check the deadline.
    ///
    /// # Errors
    /// The error of the check, or [`Class::Interrupted`](crate::error::Class::Interrupted).
    pub fn check(self) -> Result<()> {
        match self.source {
            Source::None => Ok(()),
            Source::Interrupts(interrupts) => interrupts.check(),
            Source::Check(check) => check(),
        }
    }
}

impl<'a> CancelToken<'a> {
    /// Returns the same token with another deadline.
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline, ..self }
    }

    /// Creates a token that is cancelled when `check` fails.
    pub fn new(deadline: Instant, check: &'a dyn Fn() -> Result<()>) -> Self {
        Self {
            deadline,
            source: Source::Check(check),
        }
    }
}

impl Interrupts {
    /// Returns a token that termination signals cancel.
    pub fn until(&self, deadline: Instant) -> CancelToken<'_> {
        CancelToken {
            deadline,
            source: Source::Interrupts(self),
        }
    }
}
