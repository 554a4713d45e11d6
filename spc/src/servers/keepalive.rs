//! Watching a server while a helper uses it, since a helper may wait long for a server that died.
//!
//! spc probes the server once per second. If the server stops responding and another one responds,
//! the attempt is cancelled, so that spc can move on.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Class, Error, Result};
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::servers::probe::{self, ProbeResult};

/// Time from the start of the helper to the first probe, and between probes. Most helpers are
/// faster.
const INTERVAL: Duration = Duration::from_secs(1);

/// Upper limit for a probe, which has shorter limits of its own.
const LIMIT: Duration = Duration::from_secs(60);

/// Server in use, and the servers that could replace it.
pub struct Watch {
    /// Server in use.
    pub server: SocketAddr,
    /// Other servers.
    pub others: Vec<SocketAddr>,
    /// Request to which a server replies.
    pub probe_request: &'static [u8],
}

impl Watch {
    /// Runs an attempt, and cancels it when the server stops responding and another one responds.
    ///
    /// The attempt gets a channel, to which it sends a message when its helper starts.
    ///
    /// # Errors
    /// Errors of the attempt.
    pub fn during<T>(
        self,
        interrupts: &Interrupts,
        attempt: impl FnOnce(&Sender<()>) -> Result<T>,
    ) -> Result<T> {
        let (started, events) = channel();
        let watch = move || interrupts.set_server_lost(self.wait_until_lost(&events));
        let result = thread::scope(|scope| {
            // Without this thread, the attempt still has its time limit.
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, watch) {
                tracing::debug!(%error, "cannot start a thread to watch the server");
            }
            let result = attempt(&started);
            drop(started);
            result
        });
        interrupts.set_server_lost(false);
        result
    }

    /// Waits until the server is lost or the attempt ends, which closes the channel. Returns
    /// whether the server is lost.
    fn wait_until_lost(&self, events: &Receiver<()>) -> bool {
        let check = || match events.try_recv() {
            Err(TryRecvError::Disconnected) => {
                Err(Error::new(Class::Interrupted, "the attempt has ended"))
            }
            _ => Ok(()),
        };
        if events.recv().is_err() {
            return false;
        }
        while events.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Disconnected) {
            match self.is_lost(&check) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Returns whether the server fails a probe that another server passes. If all fail, the
    /// network may be the cause.
    fn is_lost(&self, check: &dyn Fn() -> Result<()>) -> Result<bool> {
        let server = Some(self.server);
        let cancel = CancelToken::new(Instant::now() + LIMIT, check);
        let result = probe::probe_until_first(&[server], self.probe_request, cancel)?;
        if result == [ProbeResult::Responds] {
            return Ok(false);
        }
        let others = self.others.iter().copied().map(Some);
        let all: Vec<_> = [server].into_iter().chain(others).collect();
        let seen = probe::probe_all(&all, self.probe_request, cancel)?;
        tracing::debug!(server = %self.server, ?seen, "the server failed a probe");
        Ok(seen[0] != ProbeResult::Responds && seen[1..].contains(&ProbeResult::Responds))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::error::Reason;

    /// Server that replies while `replies` is set. Otherwise it only accepts connections.
    struct Server {
        address: SocketAddr,
        replies: Arc<AtomicBool>,
        listener: TcpListener,
    }

    fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let replies = Arc::new(AtomicBool::new(true));
        let (accepts, reply) = (listener.try_clone().unwrap(), Arc::clone(&replies));
        std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while let Ok((mut stream, _)) = accepts.accept() {
                if reply.load(Ordering::Relaxed) {
                    let _ = stream.write_all(b"hello");
                }
                held.push(stream);
            }
        });
        Server {
            address: listener.local_addr().unwrap(),
            replies,
            listener,
        }
    }

    /// Runs an attempt that takes this long unless it is cancelled. Returns its result and time.
    fn attempt(server: &Server, others: &[&Server], limit: Duration) -> (Result<()>, Duration) {
        let interrupts = Interrupts::block().unwrap();
        let watch = Watch {
            server: server.address,
            others: others.iter().map(|server| server.address).collect(),
            probe_request: b"who?",
        };
        let began = Instant::now();
        let result = watch.during(&interrupts, |started| {
            started.send(()).unwrap();
            while began.elapsed() < limit {
                interrupts.check()?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        interrupts.check().unwrap();
        (result, began.elapsed())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn attempt_is_cancelled_when_the_server_stops_responding() {
        let (gone, silent, other) = (server(), server(), server());
        rustix::net::shutdown(&gone.listener, rustix::net::Shutdown::Both).unwrap();
        silent.replies.store(false, Ordering::Relaxed);
        for lost in [&gone, &silent] {
            let (result, took) = attempt(lost, &[&other], LONG);
            assert_eq!(result.unwrap_err().reason(), Reason::NoAnswer);
            assert!(took >= INTERVAL && took < LONG / 2, "{took:?}");
        }
    }

    #[test]
    fn attempt_continues_while_the_server_responds_or_no_other_does() {
        let (one, other) = (server(), server());
        let limit = 2 * INTERVAL + INTERVAL / 2;
        attempt(&one, &[&other], limit).0.unwrap();
        for server in [&one, &other] {
            rustix::net::shutdown(&server.listener, rustix::net::Shutdown::Both).unwrap();
        }
        attempt(&one, &[&other], limit).0.unwrap();
    }

    #[test]
    fn server_is_not_probed_before_the_helper_starts_or_after_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let watch = Watch {
            server: listener.local_addr().unwrap(),
            others: Vec::new(),
            probe_request: b"who?",
        };
        let (started, events) = channel();
        std::thread::scope(|scope| {
            let lost = scope.spawn(move || watch.wait_until_lost(&events));
            std::thread::sleep(INTERVAL + INTERVAL / 2);
            assert!(listener.accept().is_err());
            drop(started);
            assert!(!lost.join().unwrap());
        });
        assert!(listener.accept().is_err());
    }
}
