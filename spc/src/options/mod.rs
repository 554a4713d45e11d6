//! Values of `-o` and `--secret`: options, secrets, and the option `x-spc.repair`.

pub mod generic;
mod list;
pub mod repair_scope;
pub mod secrets;

pub use list::Options;
pub use secrets::Secrets;
