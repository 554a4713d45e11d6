//! Failure of a call to the controller service.

use crate::error::{Cause, Error};

/// Kind of a failure, by what the caller may do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Request that is not valid.
    Invalid,
    /// Volume or directory that exists and is another one.
    Exists,
    /// Volume that does not exist.
    NotFound,
    /// Request that this volume cannot fulfil.
    Unsupported,
    /// Work that the time limit interrupted; the next call continues.
    Unfinished,
    /// Failure that left nothing behind.
    Final,
    /// Failure after which something may be left; the same call again may succeed.
    Unavailable,
}

/// Failure of a call.
#[derive(Debug)]
pub struct Failure {
    /// Kind of the failure.
    pub kind: Kind,
    /// Error.
    pub error: Error,
}

impl Failure {
    /// Returns a failure of this kind.
    pub fn new(kind: Kind, error: Error) -> Self {
        Self { kind, error }
    }

    /// Returns the failure of a system call on the share.
    pub(super) fn on_share(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Error::mount(what).because(cause).into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(Kind::Unavailable, error)
    }
}
