//! While a helper is at work at one of several servers: whether that one still answers. A helper may wait long for a server
//! that answered, and then died.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Class, Error, Result};
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::servers::probe::{self, ProbeResult};

/// How long a helper is left alone; most need less. Then its server is looked at as often.
const PAUSE: Duration = Duration::from_secs(1);

/// Limit for a probe, beyond those that it keeps itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A server that is used, and those that could be used instead.
pub struct Watch {
    /// That server.
    pub server: SocketAddr,
    /// The others.
    pub others: Vec<SocketAddr>,
    /// What they are told.
    pub hello: &'static [u8],
}

impl Watch {
    /// Makes an attempt, which is interrupted when the server does not answer any more and another one does. It is given
    /// what to tell that its helper begins.
    ///
    /// # Errors
    /// Those of the attempt.
    pub fn during<T>(
        self,
        interrupts: &Interrupts,
        attempt: impl FnOnce(&Sender<()>) -> Result<T>,
    ) -> Result<T> {
        let (begun, signs) = channel();
        let watch = move || interrupts.lost(self.is_lost(&signs));
        let done = thread::scope(|scope| {
            // Without a thread to be had there is still the limit in time.
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, watch) {
                tracing::debug!(%error, "its server is not watched");
            }
            let done = attempt(&begun);
            drop(begun);
            done
        });
        interrupts.lost(false);
        done
    }

    /// Waits until the server is lost, or the attempt has come to its end: then nobody gives signs any more.
    fn is_lost(&self, signs: &Receiver<()>) -> bool {
        let ended = || match signs.try_recv() {
            Err(TryRecvError::Disconnected) => Err(Error::new(Class::Interrupted, "it has ended")),
            _ => Ok(()),
        };
        if signs.recv().is_err() {
            return false;
        }
        while signs.recv_timeout(PAUSE) != Err(RecvTimeoutError::Disconnected) {
            match self.look(&ended) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Whether it does not answer. That may be the network's fault, or that of all: so others have to do better.
    fn look(&self, ended: &dyn Fn() -> Result<()>) -> Result<bool> {
        let server = Some(self.server);
        // A probe keeps limits of its own, which are shorter.
        let cancel = CancelToken::new(Instant::now() + LIMIT, ended);
        if probe::probe(&[server], self.hello, false, cancel)? == [ProbeResult::Answers] {
            return Ok(false);
        }
        let others = self.others.iter().copied().map(Some);
        let all: Vec<_> = [server].into_iter().chain(others).collect();
        let seen = probe::probe(&all, self.hello, true, cancel)?;
        tracing::debug!(server = %self.server, ?seen, "it did not answer any more");
        Ok(seen[0] != ProbeResult::Answers && seen[1..].contains(&ProbeResult::Answers))
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

    /// A server that answers as long as it is told to; then it takes connections and says nothing.
    struct Server {
        address: SocketAddr,
        speaks: Arc<AtomicBool>,
        listener: TcpListener,
    }

    fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let speaks = Arc::new(AtomicBool::new(true));
        let (accepts, told) = (listener.try_clone().unwrap(), Arc::clone(&speaks));
        std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while let Ok((mut stream, _)) = accepts.accept() {
                if told.load(Ordering::Relaxed) {
                    let _ = stream.write_all(b"hello");
                }
                held.push(stream);
            }
        });
        Server {
            address: listener.local_addr().unwrap(),
            speaks,
            listener,
        }
    }

    /// An attempt that takes so long if it is not interrupted.
    fn attempt(server: &Server, others: &[&Server], limit: Duration) -> (Result<()>, Duration) {
        let interrupts = Interrupts::hold().unwrap();
        let watch = Watch {
            server: server.address,
            others: others.iter().map(|server| server.address).collect(),
            hello: b"who?",
        };
        let started = Instant::now();
        let done = watch.during(&interrupts, |begun| {
            begun.send(()).unwrap();
            while started.elapsed() < limit {
                interrupts.check()?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        interrupts.check().unwrap();
        (done, started.elapsed())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_refuses_or_says_nothing_any_more_is_left_for_another() {
        let (gone, silent, other) = (server(), server(), server());
        rustix::net::shutdown(&gone.listener, rustix::net::Shutdown::Both).unwrap();
        silent.speaks.store(false, Ordering::Relaxed);
        for lost in [&gone, &silent] {
            let (done, took) = attempt(lost, &[&other], LONG);
            assert_eq!(done.unwrap_err().reason(), Reason::NoAnswer);
            assert!(took >= PAUSE && took < LONG / 2, "{took:?}");
        }
    }

    #[test]
    fn who_answers_may_take_its_time_and_so_may_who_is_no_worse_than_the_others() {
        let (one, other) = (server(), server());
        let limit = 2 * PAUSE + PAUSE / 2;
        attempt(&one, &[&other], limit).0.unwrap();
        for server in [&one, &other] {
            rustix::net::shutdown(&server.listener, rustix::net::Shutdown::Both).unwrap();
        }
        attempt(&one, &[&other], limit).0.unwrap();
    }

    #[test]
    fn nobody_is_asked_before_the_helper_begins_nor_after_its_end() {
        let asked = TcpListener::bind("127.0.0.1:0").unwrap();
        asked.set_nonblocking(true).unwrap();
        let watch = Watch {
            server: asked.local_addr().unwrap(),
            others: Vec::new(),
            hello: b"who?",
        };
        let (begun, signs) = channel();
        std::thread::scope(|scope| {
            let lost = scope.spawn(move || watch.is_lost(&signs));
            std::thread::sleep(PAUSE + PAUSE / 2);
            assert!(asked.accept().is_err());
            drop(begun);
            assert!(!lost.join().unwrap());
        });
        assert!(asked.accept().is_err());
    }
}
