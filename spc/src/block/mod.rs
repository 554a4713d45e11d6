//! Block devices: attaches, identifies, prepares and detaches them.

pub mod attach;
pub mod blank;
pub mod connect;
pub mod detach;
pub mod filesystem;
pub mod identity;
pub mod multipath;
pub mod node_record;
pub mod paths;
