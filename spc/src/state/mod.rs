//! State on the host: records of mounts and devices, their locks, and which mounts still exist.

pub mod attachments;
pub mod changes;
pub mod csi;
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
