//! System calls, and the state of the C library that is shared with the caller.
//!
//! System calls are made directly. The functions of the C library are replaced by this library, and
//! perhaps by others.

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
