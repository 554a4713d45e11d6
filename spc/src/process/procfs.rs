//! Reads of `/proc/PID` with a limit of length and of time.
//!
//! Any user can make a file of procfs gigabytes long or its read endless: a process may map its
//! arguments from a file system that does not respond, or wait in execve(2) for one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest part of a file that is read, in bytes.
pub const MAX_LENGTH: u64 = 128 * 1024;

/// Time limit for the read of one process.
const READ_LIMIT: Duration = Duration::from_millis(500);

/// Processes, by their ids in `/proc`, with a thread of this process that was left in a read.
static BLOCKED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Process that a thread is looking at, if any.
type Current = Arc<Mutex<Option<i32>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the first 128 KiB of a file.
///
/// # Errors
/// The file cannot be opened or read.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(MAX_LENGTH)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// Does the same as [`read`], and replaces invalid UTF-8.
///
/// # Errors
/// The file cannot be opened or read.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    read(path).map(|content| String::from_utf8_lossy(&content).into_owned())
}

/// Looks at processes one after the other on a thread of its own, and calls `found` with each
/// result. The processes are given by their ids in `/proc`.
///
/// A process whose look takes more than 0.5 s, or begins after `limit`, has no result. Its thread
/// is left behind, and the process is passed over while the thread is blocked. Returns whether all
/// processes have a result.
///
/// # Errors
/// A thread cannot be started.
pub fn look_at_each<T: Send + 'static>(
    processes: &[i32],
    limit: Duration,
    look: impl Fn(i32) -> T + Clone + Send + 'static,
    mut found: impl FnMut(i32, T),
) -> io::Result<bool> {
    let end = Instant::now() + limit;
    let mut rest: Vec<i32> = {
        let blocked = lock(&BLOCKED);
        let is_free = |pid: &&i32| !blocked.contains(pid);
        processes.iter().filter(is_free).copied().collect()
    };
    let mut all = rest.len() == processes.len();
    while !rest.is_empty() && Instant::now() < end {
        let current = Current::default();
        let results = start(rest.clone(), look.clone(), Arc::clone(&current))?;
        let mut done = 0;
        while let Some(pid) = rest.get(done) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(result) = results.recv_timeout(READ_LIMIT.min(left)) else {
                break;
            };
            found(*pid, result);
            done += 1;
        }
        rest.drain(..done);
        if let Some(pid) = rest.first().copied() {
            tracing::debug!(pid, "a process cannot be looked at in time");
            let current = lock(&current);
            if *current == Some(pid) {
                lock(&BLOCKED).insert(pid);
            }
            drop(current);
            rest.remove(0);
            all = false;
        }
    }
    Ok(all && rest.is_empty())
}

/// Starts a thread that looks at processes, in their order, for as long as the results are
/// received.
fn start<T: Send + 'static>(
    processes: Vec<i32>,
    look: impl Fn(i32) -> T + Send + 'static,
    current: Current,
) -> io::Result<Receiver<T>> {
    let (sender, results): (Sender<T>, _) = channel();
    let work = move || {
        for pid in processes {
            *lock(&current) = Some(pid);
            let result = look(pid);
            let mut current = lock(&current);
            *current = None;
            lock(&BLOCKED).remove(&pid);
            drop(current);
            if sender.send(result).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().spawn(work)?;
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_look_is_left_behind_and_not_repeated() {
        // No process has such an id.
        let ids = [-1, -2, -3];
        let look = |pid: i32| {
            if pid == -2 {
                std::thread::sleep(Duration::from_secs(3));
            }
            pid * 2
        };
        for limit in [Duration::from_secs(2), Duration::from_millis(400)] {
            let mut found = Vec::new();
            let started = Instant::now();
            let all = look_at_each(&ids, limit, look, |pid, twice| found.push((pid, twice)));
            assert!(!all.unwrap() && started.elapsed() < limit);
            assert_eq!(found, [(-1, -2), (-3, -6)]);
        }
    }

    #[test]
    fn an_endless_file_is_cut() {
        assert_eq!(read("/dev/zero").unwrap().len() as u64, MAX_LENGTH);
    }
}
