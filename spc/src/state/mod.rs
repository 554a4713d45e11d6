//! What is remembered on the host of mounts and of devices, and which of them the host still has.

pub mod ledger;
pub mod presence;
mod route;
mod session;

pub use ledger::{Ledger, Record};
pub use route::Route;
pub use session::Session;
