//! Addresses of host names, as helpers find them: from getent(1) in the container.
//!
//! spc is statically linked, so it cannot load the libraries that `/etc/nsswitch.conf` names.

use std::net::IpAddr;
use std::time::Instant;

use crate::error::{Class, Error, Result};
use crate::helper::tool::{Tool, earlier_deadline};
use crate::process::interrupts::Interrupts;

/// Time limit per name in seconds. A name that takes longer is passed to the helper unresolved.
const LIMIT: u64 = 5;

/// Largest number of servers that a source may name, for each of which a program runs, and of
/// addresses of a name that are used.
pub const MAX_SERVERS: usize = 64;

/// Returns the addresses of each name, resolved in parallel. An unknown name has none.
///
/// # Errors
/// There are more than 64 names, or a termination signal arrives.
pub fn addresses(
    names: &[&str],
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Vec<Vec<IpAddr>>> {
    if names.len() > MAX_SERVERS {
        return Err(Error::usage(format!("{} servers are given", names.len()))
            .hint(format!("give at most {MAX_SERVERS}")));
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || resolve_one(name, deadline, interrupts)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Ok(Vec::new())))
            .collect()
    })
}

fn resolve_one(name: &str, deadline: Instant, interrupts: &Interrupts) -> Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let tool = Tool {
        program: "getent",
        args: &["ahosts".into(), name.into()],
        stdin: None,
        secret_fds: None,
        id: None,
        deadline: earlier_deadline(LIMIT, deadline),
    };
    match tool.run(Some(interrupts)) {
        Ok(done) => Ok(parse(&done.text)),
        Err(error) if error.class() == Class::Interrupted => Err(error),
        Err(error) => {
            tracing::debug!(name, %error, "cannot resolve the name");
            Ok(Vec::new())
        }
    }
}

/// Parses lines `ADDRESS TYPE [NAME]`, which are in order of preference.
fn parse(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let word = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Ok(address) = word.parse()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    let this_host = |address: &IpAddr| address.is_loopback();
    if found.iter().all(this_host) {
        // The loopback addresses of both protocols are one server.
        found.truncate(1);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_addresses_are_dropped() {
        let output = "192.0.2.7       STREAM nas\n192.0.2.7 DGRAM\n192.0.2.7 RAW\n2001:db8::1 STREAM\n192.0.2.8 STREAM\n";
        let found: Vec<_> = parse(output).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.7", "2001:db8::1", "192.0.2.8"]);
        assert_eq!(parse("::1 STREAM localhost\n127.0.0.1 STREAM\n").len(), 1);
        assert!(parse("").is_empty());
    }
}
