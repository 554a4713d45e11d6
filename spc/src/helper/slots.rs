//! How many helpers run at once on a host, and who is next.
//!
//! A thousand mounts that are asked for at once would start a thousand helpers, and the machine would be at work on none
//! of them. So a helper needs a place, and who finds none waits in the order of coming, whichever container it is in.
//! Places and tickets are bytes of one file on the host, each held by a lock of the kernel (OFD locks, fcntl(2)): whoever
//! is killed, at work or waiting, gives up its own with its last breath. Of one server's mounts only so many have a place
//! that a dead server does not keep the others waiting.

use std::io::{IsTerminal, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::helper::slot_limit::{OPTION, SETTING};
use crate::host::Host;
use crate::host::ranges::Ranges;
use crate::process::cancel::CancelToken;
use crate::state::store::hash;

pub use crate::helper::slot_limit::Limit;

/// On the host.
const FILE: &str = "/run/spc/queue";

/// How often the first in the queue looks for a free place, and everybody is asked whether to go on.
const FREE: Duration = Duration::from_millis(5);
const ASK: Duration = Duration::from_millis(100);

/// How long to wait before saying so.
const SILENT: Duration = Duration::from_secs(2);

/// Each part of the queue has its own stretch of the file: first places, then tickets.
const STRETCH: u32 = 32;
const TICKETS: i64 = 1 << 31;

/// A file that has counted so many tickets begins anew when nobody waits.
const LONG: u64 = 1 << 20;

/// The right to run a helper, until dropped; without a limit everybody has it.
#[derive(Default)]
pub struct HelperSlot {
    _held: Option<Arc<Ranges>>,
    waited: Duration,
}

impl HelperSlot {
    /// A helper that had too little time may have lost it in the queue.
    pub fn explain(&self, error: Error) -> Error {
        if error.reason() == Reason::Timeout && self.waited >= Duration::from_secs(1) {
            let waited = self.waited.as_secs();
            return error.hint_also(&format!(
                "{waited} s of its time it had waited for other helpers to end"
            ));
        }
        error
    }
}

/// Waits for a place to run a helper for a mount of this server, which may have no name.
///
/// # Errors
/// There was none in time, the wait was cancelled, or the queue's file cannot be made.
pub fn acquire(
    host: &Host,
    server: Option<&str>,
    limit: Limit,
    cancel: CancelToken<'_>,
) -> Result<HelperSlot> {
    let begun = Instant::now();
    let Some(all) = limit.all() else {
        return Ok(HelperSlot::default());
    };
    let opened = host.run("looking at the queue", || Ranges::open(Path::new(FILE)))?;
    let ranges = opened.map_err(system)?;
    let mut queue = Queue {
        ranges: Arc::new(ranges),
        begun,
        cancel,
        shown: false,
    };
    let entered = match (server, limit.of_server()) {
        (Some(server), Some(limit)) => {
            // The first stretch is everybody's.
            let stretch = i64::from(u32::try_from(hash(Path::new(server)) >> 34).unwrap_or(0)) + 1;
            queue.take(stretch << STRETCH, limit, Some(server))
        }
        _ => Ok(()),
    };
    let entered = entered.and_then(|()| queue.take(0, all, None));
    if entered.is_err() {
        // A thread may hold the file still.
        queue.ranges.leave(0, i64::MAX).map_err(system)?;
    }
    entered?;
    let waited = begun.elapsed();
    if waited >= SILENT {
        tracing::info!(?waited, "waited for other helpers to end");
    }
    Ok(HelperSlot {
        waited,
        _held: Some(Arc::clone(&queue.ranges)),
    })
}

fn system(error: std::io::Error) -> Error {
    Error::system(format!("cannot use {FILE} on the host"))
        .because(error)
        .hint("make room below /run on the host")
}

/// The queue, as one who may have to wait in it has it.
struct Queue<'a> {
    ranges: Arc<Ranges>,
    begun: Instant,
    cancel: CancelToken<'a>,
    shown: bool,
}

impl Queue<'_> {
    /// Takes a place of this stretch, when its time has come.
    fn take(&mut self, stretch: i64, limit: usize, server: Option<&str>) -> Result<()> {
        let tickets = stretch + TICKETS;
        if self.held(tickets, TICKETS)?.is_none() && self.place(stretch, limit)? {
            return Ok(());
        }
        let ticket = self.ticket(tickets)?;
        loop {
            let left = self.cancel.remaining();
            if left.is_zero() {
                return Err(self.late(limit, server));
            }
            match self.before(tickets, ticket)? {
                None if self.place(stretch, limit)? => {
                    self.ranges.leave(ticket, 1).map_err(system)?;
                    return Ok(());
                }
                None => {
                    thread::sleep(FREE.min(left));
                    self.cancel.check()?;
                }
                Some(other) => {
                    let gone = self.gone(other)?;
                    loop {
                        let left = self.cancel.remaining();
                        match gone.recv_timeout(ASK.min(left)) {
                            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {
                                self.cancel.check()?
                            }
                            _ => break,
                        }
                        self.show(limit, server);
                    }
                }
            }
            self.show(limit, server);
        }
    }

    /// One of the places, if one is free.
    fn place(&self, stretch: i64, limit: usize) -> Result<bool> {
        let limit = i64::try_from(limit).unwrap_or(TICKETS);
        for place in stretch..stretch + limit.min(TICKETS) {
            if self.ranges.take(place, 1).map_err(system)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A place in the queue behind all that are in it: its byte. Each ticket makes the file longer by one.
    fn ticket(&self, tickets: i64) -> Result<i64> {
        let mut file = &self.ranges.0;
        if file.metadata().map_err(system)?.len() > LONG && self.held(0, i64::MAX)?.is_none() {
            // Somebody who comes just now may go before another: that is all.
            file.set_len(0).map_err(system)?;
        }
        loop {
            file.write_all(&[0]).map_err(system)?;
            let number = file.stream_position().map_err(system)?;
            let ticket = tickets + i64::try_from(number).unwrap_or(0) % TICKETS;
            if self.ranges.take(ticket, 1).map_err(system)? {
                return Ok(ticket);
            }
        }
    }

    /// A ticket not far before this one, of whoever is to go first.
    fn before(&self, tickets: i64, ticket: i64) -> Result<Option<i64>> {
        let mut far = 1;
        loop {
            let start = tickets.max(ticket - far);
            if start == ticket {
                return Ok(None);
            }
            if let Some(held) = self.held(start, ticket - start)? {
                return Ok(Some(held));
            }
            if start == tickets {
                return Ok(None);
            }
            far *= 2;
        }
    }

    /// Hears when a ticket is given up: a thread waits for that, for as long as this process lives.
    fn gone(&self, ticket: i64) -> Result<Receiver<()>> {
        let ranges = Arc::clone(&self.ranges);
        let (done, gone) = channel();
        let wait = move || {
            ranges.wait(ticket);
            // Whoever was to hear of it may have given up.
            let _ = done.send(());
        };
        let thread = thread::Builder::new().stack_size(64 * 1024);
        thread.spawn(wait).map_err(system)?;
        Ok(gone)
    }

    /// A byte of this stretch that another has locked.
    fn held(&self, start: i64, length: i64) -> Result<Option<i64>> {
        let held = self.ranges.held(start, length).map_err(system)?;
        Ok(held.map(|held| held.start))
    }

    fn late(&self, limit: usize, server: Option<&str>) -> Error {
        let waited = self.begun.elapsed().as_secs_f32();
        let of = server.map_or_else(String::new, |server| format!(" for {server}"));
        Error::mount("no helper was started")
            .because(format!(
                "waited {waited:.0} s, and {limit} were at work{of} all the time"
            ))
            .reason_is(Reason::Queue)
            .hint(format!(
                "`spc ls` shows what is being mounted; give it more time with --timeout, let it not wait with -o {OPTION}=0, or allow more in {SETTING} on the host"
            ))
    }

    /// A line on the terminal while it takes long; nothing where nobody looks.
    fn show(&mut self, limit: usize, server: Option<&str>) {
        let waited = self.begun.elapsed();
        if waited < SILENT || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = true;
        let of = server.map_or_else(String::new, |server| format!(" for {server}"));
        let left = self.cancel.deadline().saturating_duration_since(self.begun);
        eprint!(
            "\r\x1b[Kspc: waiting until fewer than {limit} helpers are at work{of}: {} s of at most {} s",
            waited.as_secs(),
            left.as_secs()
        );
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// One who has opened the queue anew, as every command does.
    fn comer<'a>(path: &Path, time: Duration) -> Queue<'a> {
        Queue {
            ranges: Arc::new(Ranges::open(path).unwrap()),
            begun: Instant::now(),
            cancel: CancelToken::at(Instant::now() + time),
            shown: false,
        }
    }

    fn file(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("spc-queue-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    const LONG_TIME: Duration = Duration::from_secs(60);

    #[test]
    fn they_go_in_the_order_of_coming() {
        let path = file("order");
        let mut first = comer(&path, LONG_TIME);
        first.take(0, 1, None).unwrap();
        let (went, order) = channel();
        let mut waiting = Vec::new();
        for number in 0..20 {
            let (path, went) = (path.clone(), went.clone());
            waiting.push(thread::spawn(move || {
                let mut comer = comer(&path, LONG_TIME);
                comer.take(0, 1, None).unwrap();
                went.send(number).unwrap();
            }));
            // Until it is in the queue.
            while first.held(TICKETS + number + 1, 1).unwrap().is_none() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(order.try_recv().is_err(), "there is one place");
        drop(first);
        for waited in waiting {
            waited.join().unwrap();
        }
        let order: Vec<i64> = order.try_iter().collect();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn whoever_is_gone_is_not_waited_for() {
        let path = file("gone");
        let mut first = comer(&path, LONG_TIME);
        first.take(0, 1, None).unwrap();
        // It waits, and gives up; another took a ticket, and died.
        let mut late = comer(&path, Duration::from_millis(30));
        let error = late.take(0, 1, None).unwrap_err();
        drop(late);
        assert_eq!(error.reason(), Reason::Queue);
        assert!(error.to_string().contains("1 were at work"), "{error}");
        let dead = comer(&path, LONG_TIME);
        dead.ticket(TICKETS).unwrap();
        drop((dead, first));
        let mut next = comer(&path, LONG_TIME);
        next.take(0, 1, None).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn no_more_than_the_limit_have_a_place() {
        let path = file("limit");
        let now = Duration::ZERO;
        let held: Vec<_> = (0..3)
            .map(|_| {
                let mut comer = comer(&path, now);
                comer.take(0, 3, None).unwrap();
                comer
            })
            .collect();
        assert!(comer(&path, now).take(0, 3, None).is_err());
        // Another server's stretch is another queue.
        let mut other = comer(&path, now);
        other.take(7 << STRETCH, 1, Some("b")).unwrap();
        drop(held);
        comer(&path, now).take(0, 3, None).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_signal_ends_the_wait() {
        let path = file("signal");
        let mut first = comer(&path, LONG_TIME);
        first.take(0, 1, None).unwrap();
        let stop = || Err(Error::new(crate::error::Class::Interrupted, "stopped"));
        let mut stopped = comer(&path, LONG_TIME);
        stopped.cancel = CancelToken::new(Instant::now() + LONG_TIME, &stop);
        let error = stopped.take(0, 1, None).unwrap_err();
        assert_eq!(error.reason(), Reason::Interrupted);
        fs::remove_file(path).unwrap();
    }
}
