//! The addresses of names, as the helpers would find them: asked is the resolver of their root. Ours has no libraries to load
//! what /etc/nsswitch.conf names.

use std::net::IpAddr;
use std::time::Instant;

use crate::error::{Class, Result};
use crate::helper::tool::{Tool, within};
use crate::process::interrupts::Interrupts;

/// How long a name may take, in seconds; one that takes longer goes to the helper as it is.
const LIMIT: u64 = 5;

/// The addresses of each name, all asked at once. None for one that is not known.
///
/// # Errors
/// A signal stops us.
pub fn addresses(
    names: &[&str],
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Vec<Vec<IpAddr>>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || of(name, deadline, interrupts)))
            .collect();
        let answers = asked.into_iter().map(|thread| thread.join());
        answers
            .map(|answer| answer.unwrap_or(Ok(Vec::new())))
            .collect()
    })
}

fn of(name: &str, deadline: Instant, interrupts: &Interrupts) -> Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let tool = Tool {
        program: "getent",
        args: &["ahosts".into(), name.into()],
        stdin: None,
        handover: None,
        id: None,
        deadline: within(LIMIT, deadline),
    };
    match tool.run(Some(interrupts)) {
        Ok(done) => Ok(read(&done.text)),
        Err(error) if error.class() == Class::Interrupted => Err(error),
        Err(error) => {
            tracing::debug!(name, %error, "its addresses cannot be told");
            Ok(Vec::new())
        }
    }
}

/// Lines `ADDRESS KIND [NAME]`, in the order in which they are to be used.
fn read(text: &str) -> Vec<IpAddr> {
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
        // By two protocols, but once.
        found.truncate(1);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_once_each() {
        let said = "192.0.2.7       STREAM nas\n192.0.2.7 DGRAM\n192.0.2.7 RAW\n2001:db8::1 STREAM\n192.0.2.8 STREAM\n";
        let found: Vec<_> = read(said).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.7", "2001:db8::1", "192.0.2.8"]);
        assert_eq!(read("::1 STREAM localhost\n127.0.0.1 STREAM\n").len(), 1);
        assert!(read("").is_empty());
    }
}
