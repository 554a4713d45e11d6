//! What a program prints, kept in memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

/// How many lines of a program's output or log go into an error.
const TAIL: usize = 8;

/// What a program prints, in memory: a daemon that keeps the descriptor can neither block us, as a
/// pipe's reader would be, nor be killed by SIGPIPE later.
pub struct Output(File);

impl Output {
    /// Nothing yet.
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub fn new() -> std::io::Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let fd = memfd_create(
            "helper output",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        Ok(Self(File::from(fd)))
    }

    /// For the program to write to.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// From now on a daemon's writes fail instead of filling memory.
    pub fn seal(&self) {
        use rustix::fs::{SealFlags, fcntl_add_seals};
        if let Err(error) = fcntl_add_seals(&self.0, SealFlags::GROW) {
            tracing::warn!(%error, "cannot seal a helper's output");
        }
    }

    /// The end of it.
    pub fn text(&self) -> String {
        tail(&self.0, 0).unwrap_or_default()
    }

    /// The last of the lines that count, and of those what counts.
    pub fn last_lines(&self, counts: fn(&str) -> Option<&str>) -> Vec<String> {
        last_lines(&self.0, 0, counts).unwrap_or_default()
    }
}

/// As [`Output::last_lines`], of a file from this place on.
///
/// # Errors
/// The file cannot be read.
pub fn last_lines(
    file: &File,
    from: u64,
    counts: fn(&str) -> Option<&str>,
) -> std::io::Result<Vec<String>> {
    let text = tail(file, from)?;
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| counts(line.trim_end()))
        .filter(|line| !line.is_empty())
        .collect();
    Ok(lines[lines.len().saturating_sub(TAIL)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}

/// The end of a file, from a place on.
fn tail(mut file: &File, from: u64) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(64 * 1024));
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    if start > from {
        // Half a line may be half a secret, which would not be known as one.
        let half = text.iter().position(|byte| *byte == b'\n');
        text.drain(..half.unwrap_or(text.len()));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_line_whose_beginning_is_not_read_is_left_out() {
        let output = Output::new().unwrap();
        let long = "x".repeat(70_000);
        for (text, said) in [
            ("first\n", &["first"][..]),
            (&*format!("{long} half a line\nwhole\n"), &["whole"]),
            (&long, &[]),
        ] {
            (&output.0).write_all(text.as_bytes()).unwrap();
            assert_eq!(output.last_lines(|line| Some(line)), said);
        }
    }
}
