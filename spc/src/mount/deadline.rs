//! When a mount has to be there.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::mount::request::DEFAULT_TIMEOUT;

/// How long to wait for a turn when nobody set a limit. Every helper has one, so the queue moves.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The time by which a mount has to be there. What it waits for its turn among other helpers is not its fault: that counts
/// only where somebody set a limit.
#[derive(Debug)]
pub struct Deadline {
    at: Cell<Instant>,
    counts_turns: bool,
}

impl Deadline {
    /// So long from now; where nobody said, [`DEFAULT_TIMEOUT`] without the wait for turns.
    pub fn of(timeout: Option<Duration>) -> Self {
        Self {
            at: Cell::new(Instant::now() + timeout.unwrap_or(DEFAULT_TIMEOUT)),
            counts_turns: timeout.is_some(),
        }
    }

    /// Now, as it were.
    pub fn at(&self) -> Instant {
        self.at.get()
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.at().saturating_duration_since(Instant::now())
    }

    /// Whether it takes the wait for turns into account.
    pub fn counts_turns(&self) -> bool {
        self.counts_turns
    }

    /// How long to wait for a turn, from now.
    pub fn patience(&self) -> Duration {
        match self.counts_turns {
            true => self.left(),
            false => PATIENCE,
        }
    }

    /// So long it had to wait for a turn.
    pub fn waited(&self, time: Duration) {
        if !self.counts_turns {
            self.at.set(self.at() + time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_a_turn_counts_where_somebody_set_a_limit() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let set = Deadline::of(Some(second));
        set.waited(hour);
        assert!(set.left() <= second && set.patience() <= second);
        let free = Deadline::of(None);
        free.waited(hour);
        assert!(free.left() > hour && free.left() <= hour + DEFAULT_TIMEOUT);
        assert_eq!(free.patience(), PATIENCE);
    }
}
