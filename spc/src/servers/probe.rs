//! Which of several servers answers: one is asked, and when it is late two more are, then four, so that few are troubled and
//! nobody waits for each of the dead ones in turn.

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

/// How long one that took the connection may keep its word to itself before more are asked as well.
pub const STAGGER: Duration = Duration::from_millis(100);

/// How long one may take to take the connection. Kernels do that by themselves, however busy the server is; so whoever is
/// late is far away, or is not there. It goes on being asked; the least that RFC 8305 allows before another is asked, too.
pub const CONNECT: Duration = Duration::from_millis(10);

/// How long the last that was asked may take.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How often whoever waits is asked whether to go on.
const ASK: Duration = Duration::from_millis(50);

/// What was seen of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// It was not asked: another one answered before its turn came, or its address is not known.
    Unasked,
    /// It had been asked for this long when another answered, which had not been much faster: it may be as well as that one.
    Early(Duration),
    /// It did not take the connection in this time.
    Asked(Duration),
    /// It took the connection and said nothing, or ended it.
    Silent,
    /// It answers.
    Answers,
    /// What came back.
    Fails(String),
}

impl ProbeResult {
    /// Less is better: who answers, of whom nothing is known, who took a connection, who did not.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Answers => 0,
            Self::Unasked | Self::Early(_) => 1,
            Self::Silent => 2,
            Self::Asked(_) => 3,
            Self::Fails(_) => 4,
        }
    }

    /// Whether it is to be remembered as dead.
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Fails(_) | Self::Asked(_) => true,
            Self::Unasked | Self::Early(_) | Self::Silent | Self::Answers => false,
        }
    }

    /// In words, for an error.
    pub fn words(&self, port: u16) -> String {
        match self {
            Self::Unasked => format!("not asked at port {port}"),
            Self::Answers => format!("answers at port {port}"),
            Self::Silent => format!("takes connections at port {port}, but says nothing"),
            Self::Early(time) | Self::Asked(time) => {
                let time = time.as_secs_f32();
                format!("no answer at port {port} within {time:.1} s")
            }
            Self::Fails(cause) => format!("port {port}: {cause}"),
        }
    }
}

/// A server that is being asked.
struct PendingProbe {
    socket: OwnedFd,
    since: Instant,
    /// How long it took until it had the connection.
    connected: Option<Duration>,
}

/// Asks the servers in this order until one answers, or none will; or, for `all`, until nothing more is to be expected of
/// any: who took the connection is given time for a word, however soon another one answered, for a busy server speaks late. To
/// answer is to say anything, having been told this.
///
/// # Errors
/// The wait is cancelled.
pub fn probe(
    servers: &[Option<SocketAddr>],
    hello: &[u8],
    all: bool,
    cancel: CancelToken<'_>,
) -> Result<Vec<ProbeResult>> {
    let mut seen = vec![ProbeResult::Unasked; servers.len()];
    let mut asking: Vec<(usize, PendingProbe)> = Vec::new();
    let mut waiting = servers.iter().enumerate();
    let (mut turn, mut end, mut more) = (Instant::now(), Instant::now() + PATIENCE, true);
    // How many are to be asked now, and how many when these are late.
    let (mut due, mut at_once) = (if all { servers.len() } else { 1 }, 2);
    // Until when others may take the connection, once one has answered.
    let mut reached = None;
    // What others may take for the connection, and for their word, when one has taken so long.
    let (mut connection, mut word) = (CONNECT, STAGGER);
    loop {
        let now = Instant::now();
        if more && due == 0 && (now >= turn || asking.is_empty()) {
            (due, at_once) = (at_once, 2 * at_once);
        }
        if more && due > 0 {
            let next = waiting.find_map(|(at, server)| Some((at, (*server)?)));
            more = next.is_some();
            if let Some((at, server)) = next {
                (due, turn, end) = (due - 1, now + CONNECT, now + PATIENCE);
                match begin(server) {
                    Ok(socket) => asking.push((
                        at,
                        PendingProbe {
                            socket,
                            since: now,
                            connected: None,
                        },
                    )),
                    Err(errno) => {
                        seen[at] = ProbeResult::Fails(errno_text(errno));
                        due += 1;
                    }
                }
            }
            continue;
        }
        let enough = reached.is_some_and(|until| now >= until)
            && asking.iter().all(|(_, asking)| asking.connected.is_none());
        if asking.is_empty() || now >= end || cancel.is_expired() || enough {
            break;
        }
        cancel.check()?;
        let until = if more { turn.min(end) } else { end };
        let wait = until.saturating_duration_since(now).min(ASK);
        wait_for(&asking, wait);
        let mut came = false;
        asking.retain_mut(|(at, asking)| {
            let was_connected = asking.connected.is_some();
            match asking.look(hello) {
                Some(ProbeResult::Answers) => {
                    seen[*at] = ProbeResult::Answers;
                    came = true;
                    connection = connection.max(3 * asking.connected.unwrap_or_default());
                    word = word.max(3 * asking.since.elapsed());
                }
                Some(other) => {
                    seen[*at] = other;
                    // Another one takes its place.
                    due += 1;
                }
                None => {
                    if asking.connected.is_some() && !was_connected && !all {
                        turn = turn.max(asking.since + STAGGER);
                    }
                    return true;
                }
            }
            false
        });
        if came && !all {
            break;
        } else if came {
            reached.get_or_insert(Instant::now() + PATIENCE / 3);
        }
    }
    for (at, asking) in asking {
        let time = asking.since.elapsed();
        seen[at] = match asking.connected {
            Some(_) if time < word => ProbeResult::Early(time),
            Some(_) => ProbeResult::Silent,
            None if time < connection => ProbeResult::Early(time),
            None => ProbeResult::Asked(time),
        };
    }
    Ok(seen)
}

fn begin(server: SocketAddr) -> std::result::Result<OwnedFd, Errno> {
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

fn wait_for(asking: &[(usize, PendingProbe)], wait: Duration) {
    let mut fds: Vec<_> = asking
        .iter()
        .map(|(_, asking)| {
            let flags = if asking.connected.is_some() {
                PollFlags::IN
            } else {
                PollFlags::OUT
            };
            PollFd::new(&asking.socket, flags)
        })
        .collect();
    // Whatever came of it, all are looked at.
    let _ = poll(
        &mut fds,
        Some(&Timespec::try_from(wait).unwrap_or_default()),
    );
}

impl PendingProbe {
    /// What there is to be seen of it by now; none if nothing yet.
    fn look(&mut self, hello: &[u8]) -> Option<ProbeResult> {
        if self.connected.is_none() {
            let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
            if poll(&mut fds, Some(&Timespec::default())) != Ok(1) {
                return None;
            }
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.connected = Some(self.since.elapsed()),
                Ok(Err(errno)) | Err(errno) => return Some(ProbeResult::Fails(errno_text(errno))),
            }
            if !hello.is_empty() {
                // One that has gone again shows when its answer is read.
                let _ = send(&self.socket, hello, SendFlags::NOSIGNAL);
            }
        }
        let mut word = [0; 16];
        match recv(&self.socket, &mut word, RecvFlags::empty()) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok((_, 1..)) => Some(ProbeResult::Answers),
            Ok(_) | Err(_) => Some(ProbeResult::Silent),
        }
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

    /// A server that says a word to whoever comes, and then waits for them to go.
    fn speaker() -> SocketAddr {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"hello");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        address
    }

    /// A listener whose queue is full drops what comes.
    fn full() -> (impl Sized, SocketAddr) {
        let full = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&full, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&full).unwrap()).unwrap();
        let first = TcpStream::connect(address).unwrap();
        ((full, first), address)
    }

    /// One that takes the connection, and says its word after a while.
    fn late(by: Duration) -> SocketAddr {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::sleep(by);
            let _ = stream.write_all(b"hello");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        address
    }

    fn asked(servers: &[SocketAddr]) -> (Vec<ProbeResult>, Duration) {
        let servers: Vec<_> = servers.iter().copied().map(Some).collect();
        let began = Instant::now();
        let seen = probe(&servers, b"who?", false, until_then()).unwrap();
        (seen, began.elapsed())
    }

    fn until_then() -> CancelToken<'static> {
        CancelToken::at(Instant::now() + 2 * PATIENCE)
    }

    #[test]
    fn who_refuses_costs_nothing_and_who_is_silent_a_moment() {
        let refuses = listener().1;
        let (_held, silent) = listener();
        let (seen, took) = asked(&[refuses, silent, speaker(), speaker()]);
        assert!(matches!(seen[0], ProbeResult::Fails(_)), "{seen:?}");
        assert_eq!(seen[1], ProbeResult::Silent);
        assert!(seen[2..].contains(&ProbeResult::Answers), "{seen:?}");
        assert!(took >= STAGGER && took < PATIENCE, "{took:?}");
        let (seen, _) = asked(&[refuses, refuses, speaker()]);
        assert_eq!(seen[2], ProbeResult::Answers);
    }

    #[test]
    fn who_does_not_even_take_the_connection_is_left_sooner() {
        let (_queue, address) = full();
        let (seen, took) = asked(&[address, speaker()]);
        let ProbeResult::Asked(time) = seen[0] else {
            panic!("{seen:?}")
        };
        assert_eq!(seen[1], ProbeResult::Answers);
        assert!(
            took >= CONNECT && time >= CONNECT && took < PATIENCE,
            "{took:?}"
        );
        assert!(seen[0].is_dead() && seen[0].rank() > ProbeResult::Unasked.rank());
    }

    #[test]
    fn the_more_are_late_the_more_are_asked() {
        let late = [full(), full(), full()];
        let [one, two, three] = [late[0].1, late[1].1, late[2].1];
        let is_asked = |servers: &[SocketAddr]| -> Vec<bool> {
            let seen = asked(servers).0;
            seen.iter()
                .map(|seen| *seen != ProbeResult::Unasked)
                .collect()
        };
        let (speaks, yes, no) = (speaker(), true, false);
        assert_eq!(is_asked(&[speaks, one, two]), [yes, no, no]);
        assert_eq!(is_asked(&[one, speaks, two, three]), [yes, yes, yes, no]);
        let many = [one, two, three, speaks, speaks, speaks, speaks, speaks];
        let seen = is_asked(&many);
        assert_eq!(seen, [yes, yes, yes, yes, yes, yes, yes, no]);
    }

    #[test]
    fn when_nobody_answers_it_ends_and_says_what_was_seen() {
        let refuses = listener().1;
        let (held, silent) = listener();
        let ends = {
            let (listener, address) = listener();
            std::thread::spawn(move || listener.accept().map(drop));
            address
        };
        let (seen, took) = asked(&[silent, refuses, ends]);
        assert_eq!(seen[0], ProbeResult::Silent);
        assert!(seen[1].words(7).contains("refused"), "{seen:?}");
        assert_eq!(seen[2], ProbeResult::Silent);
        assert!(took >= PATIENCE, "{took:?}");
        let mut ranked = seen;
        ranked.sort_by_key(ProbeResult::rank);
        assert!(ranked[2].is_dead() && !ranked[0].is_dead());
        drop(held);
    }

    #[test]
    fn one_whose_address_is_not_known_is_not_asked() {
        let seen = probe(&[None], &[], false, until_then()).unwrap();
        assert_eq!(seen, [ProbeResult::Unasked]);
    }

    #[test]
    fn all_are_asked_where_all_are_wanted() {
        let asked = |servers: [Option<SocketAddr>; 5]| {
            let began = Instant::now();
            let seen = probe(&servers, b"who?", true, until_then()).unwrap();
            assert_eq!(
                [&seen[0], &seen[2]],
                [&ProbeResult::Answers, &ProbeResult::Unasked]
            );
            assert!(matches!(seen[1], ProbeResult::Fails(_)), "{seen:?}");
            (seen[3..].to_vec(), began.elapsed())
        };
        let (refuses, (_queue, full), (_held, silent)) = (listener().1, full(), listener());
        let five = |a, b| [Some(speaker()), Some(refuses), None, Some(a), Some(b)];
        // Nobody is waited for who is not even reached; but one that is busy is.
        let (seen, took) = asked(five(full, speaker()));
        assert!(matches!(seen[0], ProbeResult::Asked(_)), "{seen:?}");
        assert_eq!(seen[1], ProbeResult::Answers);
        assert!(took < PATIENCE, "{took:?}");
        let (seen, took) = asked(five(late(PATIENCE / 2), full));
        assert_eq!(seen[0], ProbeResult::Answers);
        assert!(took < PATIENCE, "{took:?}");
        let (seen, took) = asked(five(silent, speaker()));
        assert_eq!(seen, [ProbeResult::Silent, ProbeResult::Answers]);
        assert!(took >= PATIENCE, "{took:?}");
    }

    #[test]
    fn whoever_had_too_little_time_is_not_taken_for_dead() {
        let (seen, _) = asked(&[late(2 * STAGGER), late(2 * STAGGER)]);
        assert_eq!(seen[0], ProbeResult::Answers);
        assert!(matches!(seen[1], ProbeResult::Early(_)), "{seen:?}");
        assert!(!seen[1].is_dead() && seen[1].rank() == ProbeResult::Unasked.rank());
    }

    #[test]
    fn whoever_waits_may_be_told_to_stop() {
        let (_held, silent) = listener();
        let stop = || Err(crate::error::Error::system("stop"));
        assert!(
            probe(
                &[Some(silent)],
                &[],
                false,
                CancelToken::new(Instant::now() + PATIENCE, &stop)
            )
            .is_err()
        );
        drop(TcpStream::connect(silent));
    }
}
