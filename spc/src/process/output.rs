//! Output of a program, kept in memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

/// Largest number of lines of a program's output or log in an error.
const TAIL: usize = 8;

/// File in memory that a program writes its output to.
///
/// A daemon may keep the descriptor open after its program exits. With a pipe, spc would wait for
/// the daemon, or the daemon would later be killed by SIGPIPE.
pub struct Output(File);

impl Output {
    /// Creates an empty file.
    ///
    /// # Errors
    /// memfd_create(2) fails.
    pub fn new() -> std::io::Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let fd = memfd_create(
            "helper output",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        Ok(Self(File::from(fd)))
    }

    /// Returns a descriptor for the program's stdout or stderr.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// Seals the file, so that later writes of a daemon fail instead of filling memory.
    pub fn seal(&self) {
        use rustix::fs::{SealFlags, fcntl_add_seals};
        if let Err(error) = fcntl_add_seals(&self.0, SealFlags::GROW) {
            tracing::warn!(%error, "cannot seal the output of a helper");
        }
    }

    /// Returns the last 64 KiB of the output, without a partial first line.
    pub fn text(&self) -> String {
        tail(&self.0, 0).unwrap_or_default()
    }

    /// Returns the last lines for which `select` returns text, as `select` returns them.
    pub fn last_lines(&self, select: fn(&str) -> Option<&str>) -> Vec<String> {
        last_lines(&self.0, 0, select).unwrap_or_default()
    }
}

/// Does the same as [`Output::last_lines`] for a file, from the offset `from` on.
///
/// # Errors
/// The file cannot be read.
pub fn last_lines(
    file: &File,
    from: u64,
    select: fn(&str) -> Option<&str>,
) -> std::io::Result<Vec<String>> {
    let text = tail(file, from)?;
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| select(line.trim_end()))
        .filter(|line| !line.is_empty())
        .collect();
    Ok(lines[lines.len().saturating_sub(TAIL)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}

/// Returns the last 64 KiB of a file, from the offset `from` on.
fn tail(mut file: &File, from: u64) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(64 * 1024));
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    if start > from {
        // A partial line may hold a partial secret, which would not be recognised and masked.
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
    fn partial_first_line_is_dropped() {
        let output = Output::new().unwrap();
        let long = "x".repeat(70_000);
        for (text, expected) in [
            ("first\n", &["first"][..]),
            (&*format!("{long} half a line\nwhole\n"), &["whole"]),
            (&long, &[]),
        ] {
            (&output.0).write_all(text.as_bytes()).unwrap();
            assert_eq!(output.last_lines(|line| Some(line)), expected);
        }
    }
}
