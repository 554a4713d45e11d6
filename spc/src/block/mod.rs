//! Block devices: attaching, identifying, preparing and detaching them.

pub mod attach;
pub mod blank;
pub mod connect;
pub mod detach;
pub mod filesystem;
pub mod identity;
pub mod multipath;
pub mod node_record;
pub mod paths;
