//! HTTP server for metrics and health, on a Unix socket of the host or on a loopback address.
//!
//! Other addresses are refused, because there is no authentication and no encryption.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::daemon::event_listener::{DIR, create_directory, retry_forever};
use crate::daemon::metrics::{CONTENT_TYPE, Metrics};
use crate::error::{Error, Result};
use crate::host::{Host, Settings};

/// Limit for receiving a request, and for sending the response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Largest number of open connections. Any user of the host can connect to a loopback address, so a
/// connection beyond the limit closes the oldest one.
const MAX_CLIENTS: usize = 32;

/// Largest number of open connections from one address.
const MAX_PER_PEER: usize = 16;

/// Longest request in bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// Address on which metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Path of a Unix socket on the host. Its mode is 0600.
    Unix(PathBuf),
    /// Loopback address and port.
    Loopback(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path of the socket must begin with /".into())
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(_) => {
                Err("not a loopback address; anyone who reaches it could read the metrics".into())
            }
            Err(_) => Err("expected unix:PATH or 127.0.0.1:PORT".into()),
        }
    }
}

/// Starts the server, which runs until the process ends. Retries an address that is not available
/// every 10 s.
///
/// # Errors
/// The thread cannot be started.
pub fn serve(address: Address, metrics: Arc<Metrics>) -> Result<()> {
    let consequence = "metrics are not served";
    let serve = move || match &address {
        Address::Loopback(address) => {
            let listener = retry_forever(consequence, || {
                let bound = TcpListener::bind(address);
                bound.map_err(|e| cannot_listen(&address.to_string(), e))
            });
            tracing::info!(%address, "serving metrics");
            let accept = || {
                listener
                    .accept()
                    .map(|(client, peer)| (client, Some(peer.ip())))
            };
            accept_clients(accept, &metrics);
        }
        Address::Unix(path) => {
            let listener = retry_forever(consequence, || bind(path));
            tracing::info!(path = %path.display(), "serving metrics");
            accept_clients(|| Ok((listener.accept()?.0, None)), &metrics);
        }
    };
    let thread = std::thread::Builder::new().name("metrics".into());
    thread
        .spawn(serve)
        .map(drop)
        .map_err(|e| Error::system("cannot start a thread").because(e))
}

/// Returns the error for an address that cannot be bound.
fn cannot_listen(address: &str, error: std::io::Error) -> Error {
    Error::system(format!("cannot listen on {address}")).because(error)
}

/// Binds a Unix socket on the host. Replaces a socket that an earlier start left, but no other
/// file.
fn bind(path: &Path) -> Result<UnixListener> {
    let host = Host::open(Settings::read()?)?;
    let host_path = path.to_owned();
    let bind = move || {
        if host_path.parent() == Some(Path::new(DIR)) {
            create_directory()?;
        }
        match fs::symlink_metadata(&host_path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&host_path)?,
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(&host_path)?;
        fs::set_permissions(&host_path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    host.run("binding the socket", bind)?
        .map_err(|e| cannot_listen(&format!("{} on the host", path.display()), e))
}

/// Connection over TCP or a Unix socket.
pub trait Client: Read + Write + Send + Sized + 'static {
    /// Sets the timeouts for the next read and write.
    fn set_timeouts(&self, timeout: Duration) -> std::io::Result<()>;
    /// Shuts down one or both directions.
    fn shut_down(&self, how: Shutdown) -> std::io::Result<()>;
    /// Duplicates the descriptor.
    fn duplicate(&self) -> std::io::Result<Self>;
}

impl Client for TcpStream {
    fn set_timeouts(&self, timeout: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }

    fn shut_down(&self, how: Shutdown) -> std::io::Result<()> {
        self.shutdown(how)
    }

    fn duplicate(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
}

impl Client for UnixStream {
    fn set_timeouts(&self, timeout: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }

    fn shut_down(&self, how: Shutdown) -> std::io::Result<()> {
        self.shutdown(how)
    }

    fn duplicate(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
}

/// Open connection.
struct Open<C> {
    /// Number of the connection, counted from the start of the server.
    number: u64,
    /// Address of the peer; none on a Unix socket.
    peer: Option<IpAddr>,
    client: C,
}

/// Open connections, the oldest first.
struct Clients<C>(Mutex<VecDeque<Open<C>>>);

impl<C: Client> Clients<C> {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Open<C>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. Closes the oldest one of the same peer, or of all, if there are too many.
    fn add(&self, new: Open<C>) {
        let mut open = self.lock();
        let is_same_peer = |other: &Open<C>| other.peer == new.peer;
        let same_peer = open.iter().filter(|other| is_same_peer(other)).count();
        let oldest = if same_peer >= MAX_PER_PEER {
            open.iter().position(is_same_peer)
        } else {
            (open.len() >= MAX_CLIENTS).then_some(0)
        };
        if let Some(closed) = oldest.and_then(|at| open.remove(at)) {
            // The peer may have closed the connection already.
            let _ = closed.client.shut_down(Shutdown::Both);
        }
        open.push_back(new);
    }

    fn remove(&self, number: u64) {
        self.lock().retain(|other| other.number != number);
    }
}

/// Accepts connections and serves each on a thread of its own. Errors of a connection are ignored.
fn accept_clients<C: Client>(
    accept: impl Fn() -> std::io::Result<(C, Option<IpAddr>)>,
    metrics: &Arc<Metrics>,
) {
    let clients = Arc::new(Clients(Mutex::default()));
    for number in 0.. {
        let Ok((mut client, peer)) = accept() else {
            // Without a pause the loop would spin while no file descriptor is free.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Ok(duplicate) = client.duplicate() else {
            continue;
        };
        clients.add(Open {
            number,
            peer,
            client: duplicate,
        });
        let (metrics, open) = (Arc::clone(metrics), Arc::clone(&clients));
        let handle = move || {
            // The client may have disconnected.
            let _ = serve_client(&mut client, &metrics);
            open.remove(number);
        };
        if std::thread::Builder::new().spawn(handle).is_err() {
            clients.remove(number);
        }
    }
}

/// Reads one request and writes the response.
fn serve_client(client: &mut impl Client, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let response = loop {
        set_deadline(client, deadline)?;
        let read = client.read(&mut buffer)?;
        request.extend(&buffer[..read]);
        if let Some(response) = response_to(&request, metrics) {
            break response;
        }
        if read == 0 || request.len() >= MAX_REQUEST {
            break bad_request().bytes();
        }
    };
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut rest = &response[..];
    while !rest.is_empty() {
        set_deadline(client, deadline)?;
        match client.write(rest)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            written => rest = &rest[written..],
        }
    }
    client.shut_down(Shutdown::Write)
}

/// Limits the next read and write of a client to the time until a deadline.
///
/// # Errors
/// The deadline has passed, or the timeouts cannot be set.
fn set_deadline(client: &impl Client, deadline: Instant) -> std::io::Result<()> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => client.set_timeouts(left),
    }
}

/// Returns the bytes of the response to a request, or `None` if the request is incomplete.
pub fn response_to(bytes: &[u8], metrics: &Metrics) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let response = match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {
            let method = request.method.unwrap_or_default();
            respond(method, request.path.unwrap_or_default(), metrics)
        }
        Ok(httparse::Status::Partial) => return None,
        Err(_) => bad_request(),
    };
    Some(response.bytes())
}

/// Returns the response to bytes that are not an HTTP request.
fn bad_request() -> Response {
    Response::plain("400 Bad Request", "not an HTTP request\n")
}

/// HTTP response.
struct Response {
    status: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    /// Whether to leave out the body, as in a response to HEAD.
    head_only: bool,
}

impl Response {
    /// Creates a response with a plain text.
    fn plain(status: &'static str, body: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.as_bytes().to_vec(),
            head_only: false,
        }
    }

    /// Returns the response as it is sent.
    fn bytes(&self) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        if !self.head_only {
            bytes.extend(&self.body);
        }
        bytes
    }
}

/// Returns the response to a request.
fn respond(method: &str, path: &str, metrics: &Metrics) -> Response {
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Response::plain("405 Method Not Allowed", "GET or HEAD\n"),
    };
    let response = match path.split('?').next() {
        Some("/metrics") => match metrics.text() {
            Ok(body) => Response {
                status: "200 OK",
                content_type: CONTENT_TYPE,
                body,
                head_only,
            },
            Err(error) => Response::plain("500 Internal Server Error", &format!("{error}\n")),
        },
        Some("/healthz") => match metrics.unhealthy_reason() {
            None => Response::plain("200 OK", "ok\n"),
            Some(reason) => Response::plain("503 Service Unavailable", &format!("{reason}\n")),
        },
        _ => Response::plain("404 Not Found", "/metrics or /healthz\n"),
    };
    Response {
        head_only,
        ..response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_socket_paths_and_loopback_addresses_are_accepted() {
        for (text, address) in [
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
            (
                "127.0.0.1:9100",
                Address::Loopback(([127, 0, 0, 1], 9100).into()),
            ),
            (
                "[::1]:9100",
                Address::Loopback("[::1]:9100".parse().unwrap()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in [
            "0.0.0.0:9100",
            "192.0.2.1:9100",
            "[::]:9100",
            "unix:x.sock",
            "9100",
            "localhost:9100",
            "",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    fn send(request: &[u8], metrics: &Metrics) -> String {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        serve_client(&mut server, metrics).unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn requests_get_the_documented_status_and_body() {
        let metrics = Metrics::new().unwrap();
        metrics.heartbeat(true);
        let long = [b"GET /healthz HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 10_000]].concat();
        for (request, status, body) in [
            (
                &b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..],
                "200 OK",
                "ok\n",
            ),
            (b"GET /healthz?x HTTP/1.0\r\n\r\n", "200 OK", "ok\n"),
            (b"HEAD /healthz HTTP/1.1\r\n\r\n", "200 OK", ""),
            (
                b"GET / HTTP/1.1\r\n\r\n",
                "404 Not Found",
                "/metrics or /healthz\n",
            ),
            (
                b"POST /metrics HTTP/1.1\r\n\r\n",
                "405 Method Not Allowed",
                "GET or HEAD\n",
            ),
            (
                b"GET /healthz HTT",
                "400 Bad Request",
                "not an HTTP request\n",
            ),
            (
                b"\x16\x03\x01\x02\x00",
                "400 Bad Request",
                "not an HTTP request\n",
            ),
            (&long, "400 Bad Request", "not an HTTP request\n"),
        ] {
            let response = send(request, &metrics);
            let (head, sent_body) = response.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{response}"
            );
            assert_eq!(sent_body, body, "{response}");
        }
        metrics.heartbeat(false);
        let response = send(b"GET /healthz HTTP/1.1\r\n\r\n", &metrics);
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    }
}
