//! Raw system calls, and the little of the C library that has to be shared with the caller.
//!
//! Raw, because the functions of the C library are what this library replaces, and may be replaced by others.

mod caller;
mod constants;
mod errno;
mod files;
mod memory;
mod mounts;
mod process;
mod raw;

pub use caller::*;
pub use constants::*;
pub use errno::{Errno, Result};
pub use files::*;
pub use memory::*;
pub use mounts::*;
pub use process::*;
pub use raw::{Fd, close, raw6};
