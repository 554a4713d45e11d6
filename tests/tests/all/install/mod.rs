//! `spc install`, and hosts on which it was run.

mod boot;
pub mod lifecycle;
mod mount_helpers;
pub mod native_commands;
