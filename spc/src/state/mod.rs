//! What is remembered on the host of mounts and of devices, and which of them the host still has.

pub mod attachments;
pub mod changes;
pub mod damage;
pub mod events;
pub mod lock;
pub mod presence;
pub mod record;
mod route;
mod session;
pub mod store;

pub use crate::state::record::Record;
pub use route::Route;
pub use session::Session;
pub use store::Ledger;
