//! Probes of servers: connects to several servers, sends a request, and waits for a reply.
//!
//! The first server is probed alone. If its reply is late, two more are probed, then four, and so
//! on. The batches keep the number of probes low, and several dead servers cost little more time
//! than a single one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
    sockopt,
};

use crate::error::{Result, errno_text};
use crate::process::cancel::CancelToken;

/// Time for a reply after a server has accepted the connection, before more servers are probed.
pub const STAGGER: Duration = Duration::from_millis(100);

/// Time for a connection, before more servers are probed. The probe itself continues.
///
/// The kernel of a server accepts connections however busy the server is, so a late one is far away
/// or dead. RFC 8305 allows no shorter time.
pub const CONNECT: Duration = Duration::from_millis(10);

/// Time limit for the probe that was started last.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Interval at which a wait checks for cancellation.
const CANCEL_CHECK: Duration = Duration::from_millis(50);

/// Result of probing a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Not probed: another server responded earlier, or the address is not known.
    NotProbed,
    /// The probe was cut short after this time because another server responded. Too early to call
    /// the server unreachable.
    CutShort(Duration),
    /// The server did not accept the connection within this time.
    NoConnection(Duration),
    /// The server accepted the connection, and then sent nothing or closed it.
    NoReply,
    /// The server replied.
    Responds,
    /// The connection failed, with this error.
    Failed(String),
}

impl ProbeResult {
    /// Returns a rank by which servers are tried: the lower, the earlier.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Responds => 0,
            Self::NotProbed | Self::CutShort(_) => 1,
            Self::NoReply => 2,
            Self::NoConnection(_) => 3,
            Self::Failed(_) => 4,
        }
    }

    /// Returns whether the server belongs in the cache of dead servers.
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Failed(_) | Self::NoConnection(_) => true,
            Self::NotProbed | Self::CutShort(_) | Self::NoReply | Self::Responds => false,
        }
    }

    /// Returns the result in words, for an error.
    pub fn description(&self, port: u16) -> String {
        match self {
            Self::NotProbed => format!("not probed at port {port}"),
            Self::Responds => format!("answers at port {port}"),
            Self::NoReply => format!("accepts connections at port {port}, but does not reply"),
            Self::CutShort(time) | Self::NoConnection(time) => {
                let time = time.as_secs_f32();
                format!("no answer at port {port} within {time:.1} s")
            }
            Self::Failed(cause) => format!("port {port}: {cause}"),
        }
    }
}

/// Probes servers in this order until one responds, or all have failed.
///
/// A server responds if it sends anything after `request`. Results are in the order of `servers`.
///
/// # Errors
/// The wait is cancelled.
pub fn probe_until_first(
    servers: &[Option<SocketAddr>],
    request: &[u8],
    cancel: CancelToken<'_>,
) -> Result<Vec<ProbeResult>> {
    probe(Round::new(servers, request, false), cancel)
}

/// Probes all servers at once.
///
/// Once a server has responded, the others get a shorter time for the connection. A server that has
/// accepted the connection gets the full time to reply, since a busy server replies late.
///
/// # Errors
/// The wait is cancelled.
pub fn probe_all(
    servers: &[Option<SocketAddr>],
    request: &[u8],
    cancel: CancelToken<'_>,
) -> Result<Vec<ProbeResult>> {
    probe(Round::new(servers, request, true), cancel)
}

fn probe(mut round: Round<'_>, cancel: CancelToken<'_>) -> Result<Vec<ProbeResult>> {
    loop {
        round.start_due();
        if round.is_done() || cancel.is_expired() {
            break;
        }
        cancel.check()?;
        round.wait();
        if round.collect() && !round.all {
            break;
        }
    }
    Ok(round.finish())
}

/// Probes of several servers: not started, running and finished ones.
struct Round<'a> {
    request: &'a [u8],
    /// Probe all servers, also after one has responded.
    all: bool,
    /// Servers that were not probed yet, with their index in `results`.
    waiting: std::vec::IntoIter<(usize, SocketAddr)>,
    running: Vec<Probe>,
    results: Vec<ProbeResult>,
    /// Number of probes to start now.
    due: usize,
    /// Number of probes to start when the running ones are late.
    next_batch: usize,
    next_batch_at: Instant,
    deadline: Instant,
    /// Deadline for connections, once a server has responded.
    connect_deadline: Option<Instant>,
    /// Times below which a probe counts as cut short, by the times of servers that responded.
    connect_allowance: Duration,
    reply_allowance: Duration,
}

impl<'a> Round<'a> {
    fn new(servers: &[Option<SocketAddr>], request: &'a [u8], all: bool) -> Self {
        let now = Instant::now();
        let known = servers.iter().enumerate();
        let known: Vec<_> = known
            .filter_map(|(index, server)| Some((index, (*server)?)))
            .collect();
        Self {
            request,
            all,
            due: if all { known.len() } else { 1 },
            waiting: known.into_iter(),
            running: Vec::new(),
            results: vec![ProbeResult::NotProbed; servers.len()],
            next_batch: 2,
            next_batch_at: now,
            deadline: now + PATIENCE,
            connect_deadline: None,
            connect_allowance: CONNECT,
            reply_allowance: STAGGER,
        }
    }

    /// Starts the probes that are due, and a new batch if the running probes are late.
    fn start_due(&mut self) {
        while self.waiting.len() > 0 {
            let now = Instant::now();
            if self.due == 0 && (now >= self.next_batch_at || self.running.is_empty()) {
                self.due = self.next_batch;
                self.next_batch *= 2;
            }
            if self.due == 0 {
                return;
            }
            if let Some((index, server)) = self.waiting.next() {
                self.start(index, server, now);
            }
        }
    }

    fn start(&mut self, index: usize, server: SocketAddr, now: Instant) {
        self.next_batch_at = now + CONNECT;
        self.deadline = now + PATIENCE;
        match start_connect(server) {
            Ok(socket) => {
                self.due -= 1;
                self.running.push(Probe {
                    index,
                    socket,
                    started: now,
                    connect_time: None,
                });
            }
            // The next server takes its place: the number of probes that are due stays.
            Err(errno) => self.results[index] = ProbeResult::Failed(errno_text(errno)),
        }
    }

    /// Returns whether no further result is expected.
    fn is_done(&self) -> bool {
        let now = Instant::now();
        let connect_over = self.connect_deadline.is_some_and(|end| now >= end);
        let connected = || self.running.iter().any(|probe| probe.is_connected());
        self.running.is_empty() || now >= self.deadline || (connect_over && !connected())
    }

    /// Waits until a running probe has news, the next batch is due, or the deadline passes.
    fn wait(&self) {
        let until = match self.waiting.len() {
            0 => self.deadline,
            _ => self.next_batch_at.min(self.deadline),
        };
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left.min(CANCEL_CHECK)).unwrap_or_default();
        let mut fds: Vec<_> = self.running.iter().map(Probe::poll_fd).collect();
        // Errors do not matter here, since `collect` checks every probe.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// Collects the results that have arrived, and returns whether a server has responded.
    fn collect(&mut self) -> bool {
        let mut responded = false;
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|probe| {
            let was_connected = probe.is_connected();
            let Some(result) = probe.result(self.request) else {
                if probe.is_connected() && !was_connected && !self.all {
                    self.next_batch_at = self.next_batch_at.max(probe.started + STAGGER);
                }
                return true;
            };
            if result == ProbeResult::Responds {
                responded = true;
                let connect_time = probe.connect_time.unwrap_or_default();
                self.connect_allowance = self.connect_allowance.max(3 * connect_time);
                self.reply_allowance = self.reply_allowance.max(3 * probe.started.elapsed());
            } else {
                // The next server takes its place.
                self.due += 1;
            }
            self.results[probe.index] = result;
            false
        });
        self.running = running;
        if responded {
            self.connect_deadline
                .get_or_insert(Instant::now() + PATIENCE / 3);
        }
        responded
    }

    /// Ends the running probes, and returns all results.
    fn finish(mut self) -> Vec<ProbeResult> {
        for probe in self.running {
            let time = probe.started.elapsed();
            self.results[probe.index] = match probe.connect_time {
                Some(_) if time < self.reply_allowance => ProbeResult::CutShort(time),
                Some(_) => ProbeResult::NoReply,
                None if time < self.connect_allowance => ProbeResult::CutShort(time),
                None => ProbeResult::NoConnection(time),
            };
        }
        self.results
    }
}

/// Running probe of a server.
struct Probe {
    /// Index of the server in the results.
    index: usize,
    socket: OwnedFd,
    started: Instant,
    /// Time until the connection was established; none before.
    connect_time: Option<Duration>,
}

impl Probe {
    fn is_connected(&self) -> bool {
        self.connect_time.is_some()
    }

    /// Returns what to wait for: the connection, or a reply.
    fn poll_fd(&self) -> PollFd<'_> {
        let flags = match self.is_connected() {
            true => PollFlags::IN,
            false => PollFlags::OUT,
        };
        PollFd::new(&self.socket, flags)
    }

    /// Returns the result, or `None` if there is none yet. Sends the request once connected.
    fn result(&mut self, request: &[u8]) -> Option<ProbeResult> {
        if !self.is_connected() {
            let mut fds = [self.poll_fd()];
            if poll(&mut fds, Some(&Timespec::default())) != Ok(1) {
                return None;
            }
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.connect_time = Some(self.started.elapsed()),
                Ok(Err(errno)) | Err(errno) => return Some(ProbeResult::Failed(errno_text(errno))),
            }
            if !request.is_empty() {
                // If the server has closed the connection, recv(2) below shows it.
                let _ = send(&self.socket, request, SendFlags::NOSIGNAL);
            }
        }
        let mut reply = [0; 16];
        match recv(&self.socket, &mut reply, RecvFlags::empty()) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok((_, 1..)) => Some(ProbeResult::Responds),
            Ok(_) | Err(_) => Some(ProbeResult::NoReply),
        }
    }
}

/// Starts a connection, without waiting for it.
fn start_connect(server: SocketAddr) -> std::result::Result<OwnedFd, Errno> {
    let family = match server {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Starts a server that sends a reply at once, and keeps the connection open.
    fn replying() -> SocketAddr {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"hello");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        address
    }

    /// Returns a listener whose backlog is full, so that the kernel drops further connections.
    fn unreachable() -> (impl Sized, SocketAddr) {
        let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
        let first = TcpStream::connect(address).unwrap();
        ((listener, first), address)
    }

    /// Starts a server that replies after this delay.
    fn slow(delay: Duration) -> SocketAddr {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::sleep(delay);
            let _ = stream.write_all(b"hello");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        address
    }

    fn probe_some(servers: &[SocketAddr]) -> (Vec<ProbeResult>, Duration) {
        let servers: Vec<_> = servers.iter().copied().map(Some).collect();
        let started = Instant::now();
        let results = probe_until_first(&servers, b"who?", long_wait()).unwrap();
        (results, started.elapsed())
    }

    fn long_wait() -> CancelToken<'static> {
        CancelToken::at(Instant::now() + 2 * PATIENCE)
    }

    #[test]
    fn next_servers_are_probed_after_a_refusal_or_a_late_reply() {
        let refuses = listener().1;
        let (_held, silent) = listener();
        let (results, took) = probe_some(&[refuses, silent, replying(), replying()]);
        assert!(matches!(results[0], ProbeResult::Failed(_)), "{results:?}");
        assert_eq!(results[1], ProbeResult::NoReply);
        assert!(results[2..].contains(&ProbeResult::Responds), "{results:?}");
        assert!(took >= STAGGER && took < PATIENCE, "{took:?}");
        let (results, _) = probe_some(&[refuses, refuses, replying()]);
        assert_eq!(results[2], ProbeResult::Responds);
    }

    #[test]
    fn next_servers_are_probed_sooner_without_a_connection() {
        let (_listener, address) = unreachable();
        let (results, took) = probe_some(&[address, replying()]);
        let ProbeResult::NoConnection(time) = results[0] else {
            panic!("{results:?}")
        };
        assert_eq!(results[1], ProbeResult::Responds);
        assert!(
            took >= CONNECT && time >= CONNECT && took < PATIENCE,
            "{took:?}"
        );
        assert!(results[0].is_dead() && results[0].rank() > ProbeResult::NotProbed.rank());
    }

    #[test]
    fn batches_double_while_servers_are_late() {
        let dead = [unreachable(), unreachable(), unreachable()];
        let [one, two, three] = [dead[0].1, dead[1].1, dead[2].1];
        let probed = |servers: &[SocketAddr]| -> Vec<bool> {
            let results = probe_some(servers).0;
            results
                .iter()
                .map(|result| *result != ProbeResult::NotProbed)
                .collect()
        };
        let (good, yes, no) = (replying(), true, false);
        assert_eq!(probed(&[good, one, two]), [yes, no, no]);
        assert_eq!(probed(&[one, good, two, three]), [yes, yes, yes, no]);
        let many = [one, two, three, good, good, good, good, good];
        assert_eq!(probed(&many), [yes, yes, yes, yes, yes, yes, yes, no]);
    }

    #[test]
    fn probes_of_unresponsive_servers_end_with_their_results() {
        let refuses = listener().1;
        let (held, silent) = listener();
        let closes = {
            let (listener, address) = listener();
            std::thread::spawn(move || listener.accept().map(drop));
            address
        };
        let (results, took) = probe_some(&[silent, refuses, closes]);
        assert_eq!(results[0], ProbeResult::NoReply);
        assert!(results[1].description(7).contains("refused"), "{results:?}");
        assert_eq!(results[2], ProbeResult::NoReply);
        assert!(took >= PATIENCE, "{took:?}");
        let mut ranked = results;
        ranked.sort_by_key(ProbeResult::rank);
        assert!(ranked[2].is_dead() && !ranked[0].is_dead());
        drop(held);
    }

    #[test]
    fn server_without_an_address_is_not_probed() {
        let results = probe_until_first(&[None], &[], long_wait()).unwrap();
        assert_eq!(results, [ProbeResult::NotProbed]);
    }

    #[test]
    fn probe_all_waits_for_connected_servers_only() {
        let probe = |servers: [Option<SocketAddr>; 5]| {
            let started = Instant::now();
            let results = probe_all(&servers, b"who?", long_wait()).unwrap();
            assert_eq!(
                [&results[0], &results[2]],
                [&ProbeResult::Responds, &ProbeResult::NotProbed]
            );
            assert!(matches!(results[1], ProbeResult::Failed(_)), "{results:?}");
            (results[3..].to_vec(), started.elapsed())
        };
        let (refuses, (_listener, dead), (_held, silent)) =
            (listener().1, unreachable(), listener());
        let five = |a, b| [Some(replying()), Some(refuses), None, Some(a), Some(b)];
        // A busy server gets time to reply; an unreachable one does not delay the others.
        let (results, took) = probe(five(dead, replying()));
        assert!(
            matches!(results[0], ProbeResult::NoConnection(_)),
            "{results:?}"
        );
        assert_eq!(results[1], ProbeResult::Responds);
        assert!(took < PATIENCE, "{took:?}");
        let (results, took) = probe(five(slow(PATIENCE / 2), dead));
        assert_eq!(results[0], ProbeResult::Responds);
        assert!(took < PATIENCE, "{took:?}");
        let (results, took) = probe(five(silent, replying()));
        assert_eq!(results, [ProbeResult::NoReply, ProbeResult::Responds]);
        assert!(took >= PATIENCE, "{took:?}");
    }

    #[test]
    fn server_that_had_too_little_time_is_not_dead() {
        let (results, _) = probe_some(&[slow(2 * STAGGER), slow(2 * STAGGER)]);
        assert_eq!(results[0], ProbeResult::Responds);
        assert!(
            matches!(results[1], ProbeResult::CutShort(_)),
            "{results:?}"
        );
        assert!(!results[1].is_dead() && results[1].rank() == ProbeResult::NotProbed.rank());
    }

    #[test]
    fn cancellation_ends_the_wait() {
        let (_held, silent) = listener();
        let stop = || Err(crate::error::Error::system("stop"));
        let cancel = CancelToken::new(Instant::now() + PATIENCE, &stop);
        assert!(probe_until_first(&[Some(silent)], &[], cancel).is_err());
        drop(TcpStream::connect(silent));
    }
}
