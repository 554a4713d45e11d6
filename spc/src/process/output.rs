//! Output of a program, kept in memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::pipe::{PipeFlags, pipe_with};

/// Largest number of lines of a program's output or log in an error.
const TAIL: usize = 8;

/// Size of the first part of the output that is kept, and of the last part, in bytes.
const PART: usize = 512 * 1024;

/// Output that a program writes to a pipe, and a thread that reads it.
///
/// At most 1 MiB is kept: the first and the last part. A daemon may keep the descriptor open after
/// its program exits. Nobody waits for it then, and its writes fail once the pipe is full.
pub struct Output {
    /// The pipe, open for reading and writing: whoever holds it is itself a reader, so that the
    /// daemon is not killed by SIGPIPE.
    pipe: OwnedFd,
    /// The thread, and the pipe that ends it when it is closed.
    reader: Mutex<Option<(OwnedFd, JoinHandle<Kept>)>>,
    kept: OnceLock<Kept>,
}

impl Output {
    /// Creates a pipe and a thread that reads it.
    ///
    /// # Errors
    /// The pipe or the thread cannot be created.
    pub fn new() -> std::io::Result<Self> {
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let pipe = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let read = move || read_until(&File::from(reader), &stopped);
        let thread = std::thread::Builder::new().spawn(read)?;
        Ok(Self {
            pipe,
            reader: Mutex::new(Some((stop, thread))),
            kept: OnceLock::new(),
        })
    }

    /// Returns a descriptor for the program's stdout or stderr.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        self.pipe.try_clone()
    }

    /// Ends the output. Later writes of a daemon fail when the pipe is full, instead of blocking.
    pub fn seal(&self) {
        self.kept();
    }

    fn kept(&self) -> &Kept {
        self.kept.get_or_init(|| {
            // All descriptors of the program share the flag.
            if let Err(error) = fcntl_setfl(&self.pipe, OFlags::NONBLOCK) {
                tracing::warn!(%error, "the output of a daemon may block it");
            }
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = reader.take().and_then(|(stop, thread)| {
                drop(stop);
                thread.join().ok()
            });
            kept.unwrap_or_default()
        })
    }

    /// Returns the output, and ends it. Of more than 1 MiB the first and the last part are
    /// returned, without partial lines.
    pub fn text(&self) -> String {
        self.kept().text()
    }

    /// Returns the last lines for which `select` returns text, as `select` returns them. Ends the
    /// output.
    pub fn last_lines(&self, select: fn(&str) -> Option<&str>) -> Vec<String> {
        select_last(&self.text(), select)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.seal();
    }
}

/// Reads a pipe until the other end of `stop` is closed, and what is in the pipe then.
fn read_until(mut pipe: &File, stop: &OwnedFd) -> Kept {
    let mut kept = Kept::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut fds = [
            PollFd::new(pipe, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return kept,
        }
        let is_last = !fds[1].revents().is_empty();
        // A daemon may go on writing, so the end is not waited for.
        for _ in 0..(2 * PART / buffer.len()) {
            match pipe.read(&mut buffer) {
                Ok(length) => kept.add(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if is_last {
            return kept;
        }
    }
}

/// First and last part of an output.
#[derive(Default)]
struct Kept {
    first: Vec<u8>,
    last: VecDeque<u8>,
    /// Number of bytes between the parts that are not kept.
    left_out: usize,
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(PART - self.first.len()));
        self.first.extend(first);
        self.last.extend(rest);
        let over = self.last.len().saturating_sub(PART);
        self.last.drain(..over);
        self.left_out += over;
    }

    /// Returns both parts. A partial line may hold a partial secret, which would not be recognised
    /// and masked, so that it is left out.
    fn text(&self) -> String {
        let mut bytes = self.first.clone();
        let (one, two) = self.last.as_slices();
        let last = [one, two].concat();
        if self.left_out == 0 {
            bytes.extend(last);
        } else {
            let end = bytes.iter().rposition(|byte| *byte == b'\n');
            bytes.truncate(end.map_or(0, |end| end + 1));
            let begin = last.iter().position(|byte| *byte == b'\n');
            bytes.extend(&last[begin.map_or(last.len(), |begin| begin + 1)..]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Does the same as [`Output::last_lines`] for the last 64 KiB of a file, from the offset `from`
/// on.
///
/// # Errors
/// The file cannot be read.
pub fn last_lines(
    file: &File,
    from: u64,
    select: fn(&str) -> Option<&str>,
) -> std::io::Result<Vec<String>> {
    Ok(select_last(&tail(file, from)?, select))
}

fn select_last(text: &str, select: fn(&str) -> Option<&str>) -> Vec<String> {
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| select(line.trim_end()))
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// Returns the last 64 KiB of a file, from the offset `from` on, without a partial first line.
fn tail(mut file: &File, from: u64) -> std::io::Result<String> {
    const LENGTH: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(LENGTH));
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(LENGTH).read_to_end(&mut text)?;
    if start > from {
        let line_end = text.iter().position(|byte| *byte == b'\n');
        text.drain(..line_end.unwrap_or(text.len()));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_first_and_the_last_part_are_kept_without_partial_lines() {
        let line = "x".repeat(1000) + "\n";
        for (text, expected) in [
            ("first\nlast".to_owned(), "first\nlast".to_owned()),
            (format!("first\n{}last\n", line.repeat(5000)), {
                let lines = line.repeat((PART - "first\n".len()) / line.len());
                let after = line.repeat((PART - "last\n".len()) / line.len());
                format!("first\n{lines}{after}last\n")
            }),
            ("x".repeat(5 * PART), String::new()),
        ] {
            let output = Output::new().unwrap();
            File::from(output.handle().unwrap())
                .write_all(text.as_bytes())
                .unwrap();
            assert!(output.text() == expected, "{}", output.text().len());
        }
    }

    #[test]
    fn a_daemon_is_neither_killed_nor_blocked_by_its_output() {
        let output = Output::new().unwrap();
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "echo ready; read go; yes | head -c 1000000; exit 7"])
            .stdin(std::process::Stdio::piped())
            .stdout(output.handle().unwrap())
            .stderr(output.handle().unwrap())
            .spawn()
            .unwrap();
        while rustix::io::ioctl_fionread(&output.pipe).is_ok_and(|waiting| waiting > 0) {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(output.text(), "ready\n");
        drop(output);
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert_eq!(shell.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn partial_first_line_of_a_log_is_dropped() {
        let long = "x".repeat(70_000);
        for (text, expected) in [
            ("first\n", &["first"][..]),
            (&*format!("{long} half a line\nwhole\n"), &["whole"]),
            (&long, &[]),
        ] {
            let name = rustix::fs::MemfdFlags::CLOEXEC;
            let log = File::from(rustix::fs::memfd_create("log", name).unwrap());
            (&log).write_all(text.as_bytes()).unwrap();
            assert_eq!(last_lines(&log, 0, |line| Some(line)).unwrap(), expected);
        }
    }
}
