//! Commands, helpers and daemons that are killed, and system calls that fail.

mod failing_syscalls;
pub mod fault_choice;
pub mod fixture;
mod killed_commands;
pub mod leak_check;
mod stale_records;
pub mod steady_io;
pub mod syscall_trial;
