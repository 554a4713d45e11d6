//! Subprocesses: starting, waiting, killing, marking and finding them.

pub mod cancel;
pub mod interrupts;
pub mod marks;
pub mod memfd;
pub mod output;
pub mod run;
pub mod subprocess;
pub mod wait;
