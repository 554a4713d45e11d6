//! Which of several servers answer, where all that do are used together.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::Host;
use crate::kinds::block::model::Endpoint;
use crate::process::interrupts::Interrupts;
use crate::servers::probe::{self, ProbeResult};
use crate::servers::{dead_cache, resolve};

/// For each place, what came back if nobody answers there; nothing if somebody does, or nobody knows. Where there are
/// others already, those that were dead a moment ago are not asked again.
///
/// # Errors
/// A signal stops us.
pub fn silent(
    places: &[Option<&Endpoint>],
    others: bool,
    host: &Host,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Vec<Option<String>>> {
    let names: Vec<&str> = places.iter().flatten().map(|at| at.host.as_str()).collect();
    let mut addresses = resolve::addresses(&names, deadline, interrupts)?.into_iter();
    let peers: Vec<Option<SocketAddr>> = places
        .iter()
        .map(|place| {
            let port = place.as_ref()?.port;
            let address = *addresses.next()?.first()?;
            Some(SocketAddr::new(address, port))
        })
        .collect();
    let hello = places
        .iter()
        .flatten()
        .next()
        .map_or(&[][..], |at| at.probe_request);
    let known: Vec<SocketAddr> = peers.iter().copied().flatten().collect();
    let mut ages = dead_cache::known(host, &known).into_iter();
    let ages: Vec<_> = peers
        .iter()
        .map(|peer| peer.and_then(|_| ages.next()?))
        .collect();
    let others = others || ages.iter().any(Option::is_none);
    let left_out = |age: &Option<Duration>| others && age.is_some();
    let asked: Vec<_> = peers
        .iter()
        .zip(&ages)
        .map(|(peer, age)| peer.filter(|_| !left_out(age)))
        .collect();
    let seen = probe::probe(&asked, hello, true, interrupts.until(deadline))?;
    let dead = |(peer, seen): (&Option<SocketAddr>, &ProbeResult)| peer.filter(|_| seen.is_dead());
    let dead = peers.iter().zip(&seen).filter_map(dead).collect();
    let alive = |(peer, seen): (&Option<SocketAddr>, &ProbeResult)| {
        peer.filter(|_| *seen == ProbeResult::Answers)
    };
    let alive = peers.iter().zip(&seen).filter_map(alive).collect();
    dead_cache::note(host, dead, alive);
    let told = places
        .iter()
        .zip(&ages)
        .zip(seen)
        .map(|((place, age), seen)| {
            let port = place.as_ref()?.port;
            match (age.filter(|_| left_out(age)), seen) {
                (Some(age), _) => Some(format!("no answer at port {port} {} s ago", age.as_secs())),
                (None, ProbeResult::Answers | ProbeResult::Unasked) => None,
                (None, seen) => Some(seen.words(port)),
            }
        });
    Ok(told.collect())
}
