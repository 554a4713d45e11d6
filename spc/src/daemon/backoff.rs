//! Back-off between repairs, and the text for a daemon's exit status.

use std::time::Duration;

/// Delay from a daemon's end to the first repair. The record of a mount that was unmounted is
/// removed by then.
pub const FIRST_DELAY: Duration = Duration::from_millis(300);

/// Longest delay between two attempts.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Returns the delay before the next attempt: [`FIRST_DELAY`], then 1 s, 2 s, 4 s and so on up to
/// [`MAX_DELAY`].
pub fn backoff(attempts: u32) -> Duration {
    match attempts.checked_sub(1) {
        None => FIRST_DELAY,
        Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(MAX_DELAY),
    }
}

/// Describes a status as wait(2) reports it.
pub fn describe_status(status: i32) -> String {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, code) => format!("exit status {code}"),
        (9, _) => "killed by signal 9, by a process or because memory was short; see dmesg".into(),
        (signal, _) => format!("killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_minute() {
        let delays = [0, 1, 2, 3, 7, 8, 100].map(|attempts| backoff(attempts).as_millis());
        assert_eq!(delays, [300, 1000, 2000, 4000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn a_wait_status_names_the_exit_code_or_signal() {
        assert_eq!(describe_status(0x0300), "exit status 3");
        assert_eq!(describe_status(15), "killed by signal 15");
        assert!(describe_status(9).contains("memory"));
        // Bit 0x80 says that there is a core dump.
        assert_eq!(describe_status(0x80 | 6), "killed by signal 6");
    }
}
