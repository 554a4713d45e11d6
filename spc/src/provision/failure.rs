//! Failure of a call to the controller service.

use crate::error::{Cause, Error};

/// Kind of a failure, by what the caller may do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Request that is not valid, whatever exists.
    Invalid,
    /// Directory that exists and is not the requested volume.
    Exists,
    /// Volume that does not exist.
    NotFound,
    /// Request that this volume cannot fulfil.
    Unsupported,
    /// Work that the time limit interrupted; the next call continues.
    Unfinished,
    /// Failure that left nothing behind.
    Final,
    /// Failure that may have left something behind. A repeated call may succeed.
    Unavailable,
}

/// Failure of a call.
#[derive(Debug)]
pub struct Failure {
    /// Kind of the failure.
    pub kind: FailureKind,
    /// Error with the message for the user.
    pub error: Error,
}

impl Failure {
    /// Creates a failure of a kind.
    pub fn new(kind: FailureKind, error: Error) -> Self {
        Self { kind, error }
    }

    /// Creates the failure of a system call on the share.
    pub(super) fn on_share(message: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Error::mount(message).because(cause).into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(FailureKind::Unavailable, error)
    }
}
