//! What stands behind `-o` and `--secret`: options, the secrets among them, and those options that are spc's own.

mod list;
pub mod repair_scope;
pub mod secrets;

pub use list::Options;
pub use secrets::Secrets;
