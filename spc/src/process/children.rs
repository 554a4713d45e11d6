//! Children of `spc serve`, which several threads start and its loop reaps.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held while a thread starts a child, and while the loop reaps all that have ended.
static LOCK: Mutex<()> = Mutex::new(());

/// Keeps children from being reaped until the guard is dropped: a thread that starts one can open
/// its pidfd, and see why it could not be started.
pub fn hold() -> MutexGuard<'static, ()> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
