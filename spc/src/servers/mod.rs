//! Servers of a source: resolving, ordering, probing and watching them.

pub mod dead_cache;
pub mod keepalive;
pub mod order;
pub mod portals;
pub mod probe;
pub mod resolve;
pub mod server;
