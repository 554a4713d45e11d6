//! Deadline of a mount.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::mount::request::DEFAULT_TIMEOUT;

/// Time limit in the queue for a helper slot, for a mount without a limit of its own. Each helper
/// has a limit, so the queue moves.
const QUEUE_LIMIT: Duration = Duration::from_secs(3600);

/// Deadline of a mount.
///
/// Time in the queue for a helper slot counts only if the user set a limit; otherwise it moves the
/// deadline.
#[derive(Debug)]
pub struct Deadline {
    at: Cell<Instant>,
    counts_slot_wait: bool,
}

impl Deadline {
    /// Creates a deadline `timeout` from now. Without a timeout it is [`DEFAULT_TIMEOUT`], without
    /// the time in the queue.
    pub fn new(timeout: Option<Duration>) -> Self {
        Self {
            at: Cell::new(Instant::now() + timeout.unwrap_or(DEFAULT_TIMEOUT)),
            counts_slot_wait: timeout.is_some(),
        }
    }

    /// Returns the current deadline.
    pub fn at(&self) -> Instant {
        self.at.get()
    }

    /// Returns the time until the deadline; zero after it.
    pub fn remaining(&self) -> Duration {
        self.at().saturating_duration_since(Instant::now())
    }

    /// Returns whether time in the queue counts.
    pub fn counts_slot_wait(&self) -> bool {
        self.counts_slot_wait
    }

    /// Returns the time limit for the queue, from now.
    pub fn queue_limit(&self) -> Duration {
        match self.counts_slot_wait {
            true => self.remaining(),
            false => QUEUE_LIMIT,
        }
    }

    /// Moves the deadline by a time that was spent in the queue, unless such time counts.
    pub fn add_slot_wait(&self, time: Duration) {
        if !self.counts_slot_wait {
            self.at.set(self.at() + time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_the_queue_counts_only_with_a_limit_of_the_user() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let set = Deadline::new(Some(second));
        set.add_slot_wait(hour);
        assert!(set.remaining() <= second && set.queue_limit() <= second);
        let free = Deadline::new(None);
        free.add_slot_wait(hour);
        assert!(free.remaining() > hour && free.remaining() <= hour + DEFAULT_TIMEOUT);
        assert_eq!(free.queue_limit(), QUEUE_LIMIT);
    }
}
