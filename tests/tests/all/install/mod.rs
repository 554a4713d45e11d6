//! `spc install`, and hosts on which it was run.

mod automounts;
mod boot;
mod callers;
pub mod lifecycle;
mod mount_helpers;
pub mod native_commands;
