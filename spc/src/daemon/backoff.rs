//! How long to wait before a repair, and how a daemon's end is told.

use std::time::Duration;

/// From the end of a daemon to the look at its mount: one that was unmounted is forgotten by then.
pub const PAUSE: Duration = Duration::from_millis(300);

/// The longest pause between two tries.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The pause before a try: short for the first, then 1 s, 2 s, 4 s, and so on.
pub fn backoff(tries: u32) -> Duration {
    match tries.checked_sub(1) {
        None => PAUSE,
        Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(LONGEST),
    }
}

/// What a wait status says.
pub fn how(status: i32) -> String {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, code) => format!("exit status {code}"),
        (9, _) => "killed by signal 9, by somebody or for want of memory; see dmesg".into(),
        (signal, _) => format!("killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute() {
        let pauses = [0, 1, 2, 3, 7, 8, 100].map(|tries| backoff(tries).as_millis());
        assert_eq!(pauses, [300, 1000, 2000, 4000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn a_wait_status_in_words() {
        assert_eq!(how(0x0300), "exit status 3");
        assert_eq!(how(15), "killed by signal 15");
        assert!(how(9).contains("memory"));
        // With a core dump.
        assert_eq!(how(0x80 | 6), "killed by signal 6");
    }
}
