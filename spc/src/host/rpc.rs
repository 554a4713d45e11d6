//! Minimal client of Sun RPC (RFC 5531) and rpcbind (RFC 1833). Checks whether a program answers on
//! the loopback interface of this network namespace.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Program number of rpcbind.
const RPCBIND: u32 = 100_000;
/// Well-known port of rpcbind.
const RPCBIND_PORT: u16 = 111;
/// Procedure of rpcbind version 2 that returns the port of a program (PMAPPROC_GETPORT).
const GETPORT: u32 = 3;
/// Protocol number of UDP.
const UDP: u32 = 17;

/// Timeout for a reply over loopback.
const LIMIT: Duration = Duration::from_secs(2);

/// Returns whether this version of a program answers over UDP, which mount helpers use too.
pub fn answers(program: u32, version: u32) -> bool {
    port(program, version).is_some_and(|port| call(port, program, version, 0, &[]).is_some())
}

/// Returns whether this version of a program is registered with rpcbind.
pub fn is_registered(program: u32, version: u32) -> bool {
    port(program, version).is_some()
}

/// Returns the UDP port of a program.
fn port(program: u32, version: u32) -> Option<u16> {
    if program == RPCBIND {
        return Some(RPCBIND_PORT);
    }
    let args = [program, version, UDP, 0];
    let results = call(RPCBIND_PORT, RPCBIND, 2, GETPORT, &args)?;
    let port = u16::try_from(*results.first()?).ok()?;
    (port != 0).then_some(port)
}

/// Calls a procedure on a port of 127.0.0.1, and returns its results as 32-bit words. None if the
/// call failed or timed out.
fn call(port: u16, program: u32, version: u32, procedure: u32, args: &[u32]) -> Option<Vec<u32>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    let id = u32::from(socket.local_addr().ok()?.port());
    socket
        .send(&message(id, program, version, procedure, args))
        .ok()?;
    let until = Instant::now() + LIMIT;
    let mut buffer = [0; 1024];
    loop {
        let left = until.checked_duration_since(Instant::now())?;
        socket.set_read_timeout(Some(left)).ok()?;
        match socket.recv(&mut buffer) {
            Ok(length) if id_of(&buffer[..length]) == Some(id) => {
                return results(&buffer[..length]);
            }
            // The datagram is not a reply to the call.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // No process listens on the port, or the call timed out.
            Err(_) => return None,
        }
    }
}

/// Returns the bytes of a call message.
fn message(id: u32, program: u32, version: u32, procedure: u32, args: &[u32]) -> Vec<u8> {
    // Message type 0 is a call, and 2 is the RPC version. Credentials and verifier are empty.
    let head = [id, 0, 2, program, version, procedure, 0, 0, 0, 0];
    let words = head.iter().chain(args);
    words.flat_map(|word| word.to_be_bytes()).collect()
}

/// Returns the transaction id of a reply.
fn id_of(reply: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*reply.first_chunk()?))
}

/// Returns the words after the header of a successful reply.
fn results(reply: &[u8]) -> Option<Vec<u32>> {
    let words = reply.chunks_exact(4).map(|word| {
        let word = word.first_chunk().copied().unwrap_or_default();
        u32::from_be_bytes(word)
    });
    let words: Vec<u32> = words.collect();
    // The header reads: reply (1), accepted (0), verifier type, empty verifier (0), success (0).
    match words.get(1..)? {
        [1, 0, _, 0, 0, results @ ..] => Some(results.to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one call on a port of its own, and returns the port.
    fn server(reply: &'static [u32]) -> u16 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(length, 44);
            let id = id_of(&buffer).unwrap();
            assert_eq!(buffer[..44], message(id, 7, 1, 3, &[9]));
            let words = [id].into_iter().chain(reply.iter().copied());
            let bytes: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
            socket.send_to(b"stray", from).unwrap();
            socket.send_to(&bytes, from).unwrap();
        });
        port
    }

    #[test]
    fn only_an_accepted_successful_call_has_results() {
        for (reply, expected) in [
            (&[1, 0, 0, 0, 0, 2049][..], Some(vec![2049])),
            (&[1, 0, 0, 0, 0], Some(vec![])),
            // PROG_UNAVAIL: the program is not available.
            (&[1, 0, 0, 0, 1], None),
            // MSG_DENIED: the call was rejected.
            (&[1, 1, 0, 0, 0], None),
            (&[1], None),
        ] {
            assert_eq!(call(server(reply), 7, 1, 3, &[9]), expected, "{reply:?}");
        }
    }

    #[test]
    fn call_to_a_closed_port_fails_at_once() {
        let port = {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.local_addr().unwrap().port()
        };
        let started = Instant::now();
        assert_eq!(call(port, 7, 1, 0, &[]), None);
        assert!(started.elapsed() < LIMIT);
    }
}
