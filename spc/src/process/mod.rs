//! Subprocesses: starting, waiting, killing, marking and finding them. Reads of procfs.

pub mod cancel;
pub mod candidates;
pub mod children;
pub mod interrupts;
pub mod marks;
pub mod memfd;
pub mod output;
pub mod procfs;
pub mod run;
pub mod subprocess;
pub mod terminate;
pub mod wait;
