//! Client of the HTTP server of `spc serve`, for the health checks of kubelet and of engines.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::daemon::http::{Address, Client};
use crate::error::{Error, Result};
use crate::host::{Host, Settings};

/// Limit for the connection, for the request, and for each part of the response.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest response in bytes.
const MAX_RESPONSE: u64 = 8 * 1024;

/// Asks the `spc serve` that serves metrics at this address whether it is healthy, and returns its
/// answer.
///
/// # Errors
/// `spc serve` is not healthy, or does not answer.
pub fn ask(address: &Address) -> Result<String> {
    let no_answer = |error| {
        Error::system(format!("spc serve does not answer at {address}"))
            .because(error)
            .hint(format!("its options need `--metrics {address}`; its log says whether that address is available"))
    };
    let response = match address {
        Address::Loopback(socket) => TcpStream::connect_timeout(socket, TIMEOUT).and_then(exchange),
        Address::Unix(path) => {
            let path = path.clone();
            let host = Host::open(Settings::read()?)?;
            host.run("connecting to the socket", move || connect(&path))?
                .and_then(exchange)
        }
    };
    verdict(&response.map_err(no_answer)?)
}

/// Connects to a Unix socket. A stuck server accepts no connection, and a full queue would block.
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn exchange<C: Client>(mut server: C) -> std::io::Result<String> {
    server.set_timeouts(TIMEOUT)?;
    server.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    match server.take(MAX_RESPONSE).read_to_string(&mut response) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(response),
        Err(error) => Err(error),
    }
}

/// Reads the response of `/healthz`.
fn verdict(response: &str) -> Result<String> {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    let body: String = body.chars().filter(|c| !c.is_control()).collect();
    let status = head.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => Ok(body),
        _ if body.is_empty() => Err(Error::system("something else than spc serve answers")),
        _ => Err(Error::system("spc serve is not healthy")
            .because(body)
            .hint("its log has the reason")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_accepts_from_is_not_waited_for() {
        let name = format!("spc-health-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let started = std::time::Instant::now();
        let first = connect(&path).unwrap();
        let second = connect(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(second.unwrap_err().kind(), ErrorKind::WouldBlock);
        exchange(first).unwrap_err();
        assert!(started.elapsed() < TIMEOUT * 4);
    }

    #[test]
    fn only_the_status_200_is_healthy() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
        assert_eq!(verdict(ok).unwrap(), "ok");
        let bad = "HTTP/1.1 503 Service Unavailable\r\n\r\nthe host is not watched\n";
        let error = verdict(bad).unwrap_err().summary();
        assert!(error.contains("the host is not watched"), "{error}");
        for other in ["", "SSH-2.0-OpenSSH_9.2", "HTTP/1.1 404 Not Found\r\n\r\n"] {
            verdict(other).unwrap_err();
        }
    }
}
