//! A server of a source, with one of its addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::servers::probe::ProbeResult;

/// Server at one of its addresses.
#[derive(Clone, Debug)]
pub struct Server {
    /// Name as the source has it.
    pub name: String,
    /// Address, where the name has several.
    pub address: Option<IpAddr>,
    /// Address and port that spc probes; none if the name cannot be resolved.
    pub peer: Option<SocketAddr>,
    /// Time since the server failed a probe, if it did within the last minute.
    pub failed_ago: Option<Duration>,
    /// Result of this command's probe.
    pub(crate) probe: ProbeResult,
    /// Error of the mount attempt with this server, in one line.
    pub(crate) last_error: Option<String>,
}

impl Server {
    /// Returns the name, with the address where the name has several.
    pub fn display_name(&self) -> String {
        match self.address {
            Some(address) => format!("{} ({address})", self.name),
            None => self.name.clone(),
        }
    }
}
