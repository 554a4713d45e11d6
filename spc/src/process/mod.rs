//! Subprocesses: how they are started, waited for, killed, marked and found again.

pub mod cancel;
pub mod interrupts;
pub mod marks;
pub mod output;
pub mod subprocess;
pub mod wait;
