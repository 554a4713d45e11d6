//! A server of a source, with its address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::servers::probe::Seen;

/// A server, at one of its addresses.
#[derive(Clone, Debug)]
pub struct Server {
    /// As it was named.
    pub name: String,
    /// Which of its addresses, where it has several.
    pub address: Option<IpAddr>,
    /// Where it is asked.
    pub peer: Option<SocketAddr>,
    /// How long ago it did not answer, if that is remembered.
    pub dead: Option<Duration>,
    pub(crate) seen: Seen,
    pub(crate) told: Option<String>,
}

impl Server {
    /// For people.
    pub fn shown(&self) -> String {
        match self.address {
            Some(address) => format!("{} ({address})", self.name),
            None => self.name.clone(),
        }
    }
}
