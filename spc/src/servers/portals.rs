//! Probing the portals of a multipath device, where all that respond are used together.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::Host;
use crate::kinds::block::model::Endpoint;
use crate::process::interrupts::Interrupts;
use crate::servers::probe::{self, ProbeResult};
use crate::servers::{dead_cache, resolve};

/// Returns, for each endpoint, the reason why it is unusable; none if it responds, or may respond.
///
/// `attached` says that the device has other paths already. Then, or if another endpoint is not in
/// the cache of dead servers, endpoints in that cache are not probed again.
///
/// # Errors
/// A termination signal arrives.
pub fn find_unresponsive(
    endpoints: &[Option<&Endpoint>],
    attached: bool,
    host: &Host,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Vec<Option<String>>> {
    let peers = resolve_all(endpoints, deadline, interrupts)?;
    let known: Vec<SocketAddr> = peers.iter().copied().flatten().collect();
    let mut ages = dead_cache::ages(host, &known).into_iter();
    let mut failed_ago: Vec<Option<Duration>> = peers
        .iter()
        .map(|peer| peer.and_then(|_| ages.next()?))
        .collect();
    if !attached && failed_ago.iter().all(Option::is_some) {
        // No other endpoint is left, so probe them all.
        failed_ago.fill(None);
    }
    let to_probe: Vec<_> = peers
        .iter()
        .zip(&failed_ago)
        .map(|(peer, age)| peer.filter(|_| age.is_none()))
        .collect();
    let request = endpoints.iter().flatten().next();
    let request = request.map_or(&[][..], |endpoint| endpoint.probe_request);
    let results = probe::probe_all(&to_probe, request, interrupts.until(deadline))?;
    let (mut dead, mut alive) = (Vec::new(), Vec::new());
    for (peer, result) in peers.iter().zip(&results) {
        dead.extend(peer.filter(|_| result.is_dead()));
        alive.extend(peer.filter(|_| *result == ProbeResult::Responds));
    }
    dead_cache::update(host, dead, alive);
    let causes = endpoints.iter().zip(failed_ago).zip(results);
    let causes = causes.map(|((endpoint, failed_ago), result)| {
        let port = endpoint.as_ref()?.port;
        match (failed_ago, result) {
            (Some(age), _) => Some(format!("no answer at port {port} {} s ago", age.as_secs())),
            (None, ProbeResult::Responds | ProbeResult::NotProbed) => None,
            (None, result) => Some(result.description(port)),
        }
    });
    Ok(causes.collect())
}

/// Returns the first address of each endpoint, if its name can be resolved.
fn resolve_all(
    endpoints: &[Option<&Endpoint>],
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Vec<Option<SocketAddr>>> {
    let known = endpoints.iter().flatten();
    let names: Vec<&str> = known.map(|endpoint| endpoint.host.as_str()).collect();
    let mut addresses = resolve::addresses(&names, deadline, interrupts)?.into_iter();
    let peers = endpoints.iter().map(|endpoint| {
        let port = endpoint.as_ref()?.port;
        let address = *addresses.next()?.first()?;
        Some(SocketAddr::new(address, port))
    });
    Ok(peers.collect())
}
