//! Metrics and health for whoever asks over HTTP: on a socket of the host, or on a loopback address. There is no password and no
//! encryption, so nowhere else.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::event_listener::persist;
use crate::daemon::metrics::{FORM, Metrics};
use crate::error::{Error, Result};
use crate::host::{Host, Settings};

/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many are served at once; anybody on the host may come to a loopback address.
const CLIENTS: usize = 8;

/// The longest question.
const QUESTION: usize = 8 * 1024;

/// Where metrics are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket of the host; root alone may connect.
    Unix(PathBuf),
    /// A port of a loopback address.
    Loopback(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err("the path of a socket begins with /".into()),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(_) => {
                Err("not a loopback address: anybody who reaches it could read the metrics".into())
            }
            Err(_) => Err("write unix:PATH or 127.0.0.1:PORT".into()),
        }
    }
}

/// Answers, on threads of their own, for as long as the process lives. An address that cannot be had yet is tried again.
///
/// # Errors
/// No thread can be started.
pub fn serve(address: Address, metrics: Arc<Metrics>) -> Result<()> {
    let means = "metrics are not shown";
    let serve = move || match &address {
        Address::Loopback(address) => {
            let listener = persist(means, || {
                let bound = TcpListener::bind(address);
                bound.map_err(|e| cannot_listen(&address.to_string(), e))
            });
            tracing::info!(%address, "metrics are shown");
            answer(|| Ok(listener.accept()?.0), &metrics);
        }
        Address::Unix(path) => {
            let listener = persist(means, || bind(path));
            tracing::info!(path = %path.display(), "metrics are shown");
            answer(|| Ok(listener.accept()?.0), &metrics);
        }
    };
    let thread = std::thread::Builder::new().name("metrics".into());
    thread
        .spawn(serve)
        .map(drop)
        .map_err(|e| Error::system("cannot start a thread").because(e))
}

fn cannot_listen(place: &str, error: std::io::Error) -> Error {
    Error::system(format!("cannot listen on {place}")).because(error)
}

/// Binds a socket on the host, in place of one that is left of an earlier start; anything else stays.
fn bind(path: &Path) -> Result<UnixListener> {
    let host = Host::open(Settings::read()?)?;
    let place = path.to_owned();
    let bind = move || {
        match fs::symlink_metadata(&place) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(&place)?,
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(&place)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    host.run("making a socket", bind)?
        .map_err(|e| cannot_listen(&format!("{} on the host", path.display()), e))
}

/// A connection of either kind.
trait Client: Read + Write + Send + 'static {
    fn limit(&self) -> std::io::Result<()>;
    fn end(&self) -> std::io::Result<()>;
}

impl Client for TcpStream {
    fn limit(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))?;
        self.set_write_timeout(Some(PATIENCE))
    }

    fn end(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Client for UnixStream {
    fn limit(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))?;
        self.set_write_timeout(Some(PATIENCE))
    }

    fn end(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Accepts clients; what goes wrong with one is its own affair.
fn answer<C: Client>(accept: impl Fn() -> std::io::Result<C>, metrics: &Arc<Metrics>) {
    let at_once = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok(mut client) = accept() else {
            // No descriptor is left, for instance.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if at_once.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
            at_once.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (metrics, leaving) = (Arc::clone(metrics), Arc::clone(&at_once));
        let talk = move || {
            // It may have gone away; nobody is left to be told.
            let _ = converse(&mut client, &metrics);
            leaving.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().spawn(talk).is_err() {
            at_once.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One question and its answer.
fn converse(client: &mut impl Client, metrics: &Metrics) -> std::io::Result<()> {
    client.limit()?;
    let until = Instant::now() + PATIENCE;
    let mut question = Vec::new();
    let mut part = [0; 1024];
    let answer = loop {
        let read = client.read(&mut part)?;
        question.extend(&part[..read]);
        if let Some(answer) = answer_to(&question, metrics) {
            break answer;
        }
        if read == 0 || question.len() >= QUESTION || Instant::now() >= until {
            break bad().bytes();
        }
    };
    client.write_all(&answer)?;
    client.flush()?;
    client.end()
}

/// The answer to what a client has asked so far; none while more has to come.
pub fn answer_to(question: &[u8], metrics: &Metrics) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let answer = match request.parse(question) {
        Ok(httparse::Status::Complete(_)) => {
            let asked = (
                request.method.unwrap_or_default(),
                request.path.unwrap_or_default(),
            );
            respond(asked, metrics)
        }
        Ok(httparse::Status::Partial) => return None,
        Err(_) => bad(),
    };
    Some(answer.bytes())
}

fn bad() -> Answer {
    Answer::plain("400 Bad Request", "this is no request\n")
}

struct Answer {
    status: &'static str,
    form: &'static str,
    body: Vec<u8>,
    /// The body is not wanted, only its length.
    head: bool,
}

impl Answer {
    fn plain(status: &'static str, body: &str) -> Self {
        Self {
            status,
            form: "text/plain; charset=utf-8",
            body: body.as_bytes().to_vec(),
            head: false,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.form,
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        if !self.head {
            bytes.extend(&self.body);
        }
        bytes
    }
}

fn respond((method, path): (&str, &str), metrics: &Metrics) -> Answer {
    let head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Answer::plain("405 Method Not Allowed", "GET or HEAD\n"),
    };
    let answer = match path.split('?').next() {
        Some("/metrics") => match metrics.text() {
            Ok(body) => Answer {
                status: "200 OK",
                form: FORM,
                body,
                head,
            },
            Err(error) => Answer::plain("500 Internal Server Error", &format!("{error}\n")),
        },
        Some("/healthz") => match metrics.unhealthy_reason() {
            None => Answer::plain("200 OK", "ok\n"),
            Some(ailment) => Answer::plain("503 Service Unavailable", &format!("{ailment}\n")),
        },
        _ => Answer::plain("404 Not Found", "/metrics or /healthz\n"),
    };
    Answer { head, ..answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_or_loopback_will_do() {
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

    fn ask(question: &[u8], metrics: &Metrics) -> String {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(question).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        converse(&mut server, metrics).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_question_has_one_answer() {
        let metrics = Metrics::new().unwrap();
        metrics.heartbeat(true);
        let long = [b"GET /healthz HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 10_000]].concat();
        for (question, status, body) in [
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
                "this is no request\n",
            ),
            (
                b"\x16\x03\x01\x02\x00",
                "400 Bad Request",
                "this is no request\n",
            ),
            (&long, "400 Bad Request", "this is no request\n"),
        ] {
            let answer = ask(question, &metrics);
            let (head, said) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{answer}"
            );
            assert_eq!(said, body, "{answer}");
        }
        metrics.heartbeat(false);
        let answer = ask(b"GET /healthz HTTP/1.1\r\n\r\n", &metrics);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
}
