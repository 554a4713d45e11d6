//! Slots for helpers: they limit how many helpers run at once on a host, and queue the others.
//!
//! Without a limit, a thousand mounts at once would start a thousand helpers and overload the host.
//! A helper needs a slot; without a free slot, its command waits in a FIFO queue that all
//! containers of the host share. Slots and queue tickets are bytes of one file on the host, locked
//! with OFD locks (fcntl(2)). The kernel releases the lock of a process that exits or is killed.
//! The limit per server keeps a dead server from using up all slots.

use std::io::{IsTerminal, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::helper::slot_limit::{OPTION, PODS, SETTING, section_of};
use crate::host::Host;
use crate::host::ranges::Ranges;
use crate::process::cancel::CancelToken;

pub use crate::helper::slot_limit::SlotLimit;

/// File on the host whose bytes are slots and tickets.
const FILE: &str = "/run/spc/queue";

/// Interval at which the first command in the queue checks for a free slot.
const SLOT_CHECK: Duration = Duration::from_millis(5);
/// Interval at which a waiting command checks for cancellation.
const CANCEL_CHECK: Duration = Duration::from_millis(100);

/// Wait after which progress is shown and the wait is logged.
const SHOW_AFTER: Duration = Duration::from_secs(2);

/// Offset of the tickets in a section, and their number.
const TICKETS: i64 = 1 << 31;

/// Size at which the file is truncated, once no slot or ticket is held. It grows by a byte per
/// ticket.
const MAX_SIZE: u64 = 1 << 20;

/// Right to run a helper, released on drop. Without a limit it holds no lock.
#[derive(Default)]
pub struct HelperSlot {
    _locks: Option<Arc<Ranges>>,
    /// Time in the queue.
    waited: Duration,
}

impl HelperSlot {
    /// Adds a hint to the timeout of a helper whose command spent a part of its time in the queue.
    pub fn explain(&self, error: Error) -> Error {
        if error.reason() == Reason::Timeout && self.waited >= Duration::from_secs(1) {
            let waited = self.waited.as_secs();
            return error.hint_also(&format!(
                "{waited} s of that time were spent in the queue for a helper slot"
            ));
        }
        error
    }
}

/// Waits for a slot to run a helper, for a mount of this server if its name is known. Pods, which
/// choose their servers, leave some slots to others, also those of a server.
///
/// # Errors
/// No slot became free before the deadline, the wait was cancelled, or the file cannot be used.
pub fn acquire(
    host: &Host,
    server: Option<&str>,
    of_pod: bool,
    limit: SlotLimit,
    cancel: CancelToken<'_>,
) -> Result<HelperSlot> {
    let started = Instant::now();
    let Some(total) = limit.total() else {
        return Ok(HelperSlot::default());
    };
    let opened = host.run("opening the queue of helpers", || {
        Ranges::open(Path::new(FILE))
    })?;
    let ranges = opened.map_err(system)?;
    let mut queue = Queue {
        ranges: Arc::new(ranges),
        started,
        cancel,
        shown: false,
    };
    let entered = match (server, limit.per_server()) {
        (Some(server), Some(limit)) => queue.enter(section_of(server, of_pod), limit, Some(server)),
        _ => Ok(()),
    };
    let entered = entered.and_then(|()| match limit.for_pods() {
        Some(limit) if of_pod => queue.enter(PODS, limit, None),
        _ => Ok(()),
    });
    let entered = entered.and_then(|()| queue.enter(0, total, None));
    if entered.is_err() {
        // A waiting thread keeps the file open, and with it the locks.
        queue.ranges.unlock(0, i64::MAX).map_err(system)?;
    }
    entered?;
    let waited = started.elapsed();
    if waited >= SHOW_AFTER {
        tracing::info!(?waited, "waited for a helper slot");
    }
    Ok(HelperSlot {
        waited,
        _locks: Some(Arc::clone(&queue.ranges)),
    })
}

/// Returns the error for a failure of the queue's file.
fn system(error: std::io::Error) -> Error {
    Error::system(format!("cannot use {FILE} on the host"))
        .because(error)
        .hint("check that /run on the host is writable and has free space")
}

/// Queue of helpers, as one command uses it.
struct Queue<'a> {
    ranges: Arc<Ranges>,
    started: Instant,
    cancel: CancelToken<'a>,
    /// A progress line is on the terminal.
    shown: bool,
}

impl Queue<'_> {
    /// Waits in the queue of a section, and takes one of its slots.
    fn enter(&mut self, section: i64, limit: usize, server: Option<&str>) -> Result<()> {
        let tickets = section + TICKETS;
        if self.locked(tickets, TICKETS)?.is_none() && self.take_slot(section, limit)? {
            return Ok(());
        }
        let ticket = self.ticket(tickets)?;
        loop {
            let left = self.cancel.remaining();
            if left.is_zero() {
                return Err(self.timed_out(limit, server));
            }
            match self.predecessor(tickets, ticket)? {
                None if self.take_slot(section, limit)? => {
                    self.ranges.unlock(ticket, 1).map_err(system)?;
                    return Ok(());
                }
                None => {
                    thread::sleep(SLOT_CHECK.min(left));
                    self.cancel.check()?;
                }
                Some(predecessor) => {
                    let released = self.on_release(predecessor)?;
                    loop {
                        let left = self.cancel.remaining();
                        match released.recv_timeout(CANCEL_CHECK.min(left)) {
                            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {
                                self.cancel.check()?
                            }
                            _ => break,
                        }
                        self.show_progress(limit, server);
                    }
                }
            }
            self.show_progress(limit, server);
        }
    }

    /// Takes a free slot, and returns whether there was one.
    fn take_slot(&self, section: i64, limit: usize) -> Result<bool> {
        let limit = i64::try_from(limit).unwrap_or(TICKETS);
        for slot in section..section + limit.min(TICKETS) {
            if self.ranges.try_lock(slot, 1).map_err(system)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the ticket at the end of the queue, and returns its offset. Appending a byte to the
    /// file makes the number unique.
    fn ticket(&self, tickets: i64) -> Result<i64> {
        let mut file = &self.ranges.0;
        if file.metadata().map_err(system)?.len() > MAX_SIZE && self.locked(0, i64::MAX)?.is_none()
        {
            // A command that enters now may overtake another, which does no harm.
            file.set_len(0).map_err(system)?;
        }
        loop {
            file.write_all(&[0]).map_err(system)?;
            let number = file.stream_position().map_err(system)?;
            let ticket = tickets + i64::try_from(number).unwrap_or(0) % TICKETS;
            if self.ranges.try_lock(ticket, 1).map_err(system)? {
                return Ok(ticket);
            }
        }
    }

    /// Returns the offset of a held ticket before this one, close to it if possible.
    fn predecessor(&self, tickets: i64, ticket: i64) -> Result<Option<i64>> {
        let mut distance = 1;
        loop {
            let start = tickets.max(ticket - distance);
            if start == ticket {
                return Ok(None);
            }
            if let Some(held) = self.locked(start, ticket - start)? {
                return Ok(Some(held));
            }
            if start == tickets {
                return Ok(None);
            }
            distance *= 2;
        }
    }

    /// Returns a channel that receives a message when a ticket is released. A thread waits for
    /// that, since a wait for a lock has no time limit.
    fn on_release(&self, ticket: i64) -> Result<Receiver<()>> {
        let ranges = Arc::clone(&self.ranges);
        let (sender, receiver) = channel();
        let wait = move || {
            ranges.wait_until_free(ticket);
            // Fails if the command has left the queue.
            let _ = sender.send(());
        };
        let thread = thread::Builder::new().stack_size(64 * 1024);
        thread.spawn(wait).map_err(system)?;
        Ok(receiver)
    }

    /// Returns the offset of a byte of this range that another command has locked.
    fn locked(&self, start: i64, length: i64) -> Result<Option<i64>> {
        let held = self.ranges.conflicting(start, length).map_err(system)?;
        Ok(held.map(|held| held.start))
    }

    fn timed_out(&self, limit: usize, server: Option<&str>) -> Error {
        let waited = self.started.elapsed().as_secs_f32();
        let of = server.map_or_else(String::new, |server| format!(" for {server}"));
        let running = match limit {
            1 => format!("1 helper{of} is running"),
            limit => format!("{limit} helpers{of} are running"),
        };
        Error::mount(format!("timed out in the queue after {waited:.0} s"))
            .because(format!("{running} (the limit)"))
            .reason_is(Reason::Queue)
            .hint(format!(
                "`spc ls` shows the mounts in progress; raise --timeout, skip the queue with -o {OPTION}=0, or raise the limit in {SETTING} on the host"
            ))
    }

    /// Shows a progress line on stderr, if that is a terminal, from the third second on.
    fn show_progress(&mut self, limit: usize, server: Option<&str>) {
        let waited = self.started.elapsed();
        if waited < SHOW_AFTER || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = true;
        let of = server.map_or_else(String::new, |server| format!(" for {server}"));
        let left = self
            .cancel
            .deadline()
            .saturating_duration_since(self.started);
        eprint!(
            "\r\x1b[Kspc: waiting for a helper slot ({limit} helpers{of} are running): {} s of at most {} s",
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

    /// Opens the queue, as each command does.
    fn command<'a>(path: &Path, time: Duration) -> Queue<'a> {
        Queue {
            ranges: Arc::new(Ranges::open(path).unwrap()),
            started: Instant::now(),
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
    fn commands_leave_the_queue_in_fifo_order() {
        let path = file("order");
        let mut first = command(&path, LONG_TIME);
        first.enter(0, 1, None).unwrap();
        let (started, order) = channel();
        let mut waiting = Vec::new();
        for number in 0..20 {
            let (path, started) = (path.clone(), started.clone());
            waiting.push(thread::spawn(move || {
                let mut command = command(&path, LONG_TIME);
                command.enter(0, 1, None).unwrap();
                started.send(number).unwrap();
            }));
            // Wait until the thread has its ticket.
            while first.locked(TICKETS + number + 1, 1).unwrap().is_none() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(order.try_recv().is_err(), "there is one slot");
        drop(first);
        for waited in waiting {
            waited.join().unwrap();
        }
        let order: Vec<i64> = order.try_iter().collect();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn ticket_of_a_dead_command_is_skipped() {
        let path = file("gone");
        let mut first = command(&path, LONG_TIME);
        first.enter(0, 1, None).unwrap();
        // A command times out in the queue, and another dies with a ticket.
        let mut late = command(&path, Duration::from_millis(30));
        let error = late.enter(0, 1, None).unwrap_err();
        drop(late);
        assert_eq!(error.reason(), Reason::Queue);
        assert!(
            error
                .to_string()
                .contains("1 helper is running (the limit)"),
            "{error}"
        );
        let dead = command(&path, LONG_TIME);
        dead.ticket(TICKETS).unwrap();
        drop((dead, first));
        let mut next = command(&path, LONG_TIME);
        next.enter(0, 1, None).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn limit_holds_per_section() {
        let path = file("limit");
        let now = Duration::ZERO;
        let held: Vec<_> = (0..3)
            .map(|_| {
                let mut command = command(&path, now);
                command.enter(0, 3, None).unwrap();
                command
            })
            .collect();
        assert!(command(&path, now).enter(0, 3, None).is_err());
        // Another server has a section of its own.
        let mut other = command(&path, now);
        other.enter(section_of("b", false), 1, Some("b")).unwrap();
        drop(held);
        command(&path, now).enter(0, 3, None).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn signal_ends_the_wait() {
        let path = file("signal");
        let mut first = command(&path, LONG_TIME);
        first.enter(0, 1, None).unwrap();
        let stop = || Err(Error::new(crate::error::Class::Interrupted, "stopped"));
        let mut stopped = command(&path, LONG_TIME);
        stopped.cancel = CancelToken::new(Instant::now() + LONG_TIME, &stop);
        let error = stopped.enter(0, 1, None).unwrap_err();
        assert_eq!(error.reason(), Reason::Interrupted);
        fs::remove_file(path).unwrap();
    }
}
