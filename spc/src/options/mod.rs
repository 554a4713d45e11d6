//! What stands behind `-o` and `--secret`: options, the secrets among them, and those options that are spc's own.

pub mod extent;
mod list;
pub mod secrets;

pub use list::Options;
pub use secrets::Secrets;
