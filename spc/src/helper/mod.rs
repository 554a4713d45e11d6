//! Running mount helpers and tools: finding programs, passing secrets and files, limiting how many
//! run at once.

pub mod option_files;
pub mod program;
pub mod sandbox;
pub mod secret_fds;
pub mod slot_limit;
pub mod slots;
pub mod tool;
