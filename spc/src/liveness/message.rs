//! Messages of a subprocess to the process that started it: JSON, one object per line.

use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::liveness::health::Health;

/// Result that a subprocess prints to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The path was walked, or the unmount step has succeeded.
    Done,
    /// Another process has been blocked on the path for the whole limit.
    Held,
    /// The mount is not the topmost one on its target.
    NotThere,
    /// The system call failed with this errno.
    Failed(i32),
    /// The state of a mount.
    Probed {
        /// Position of the mount in the input.
        index: usize,
        /// State of the mount.
        health: Health,
        /// Size and use, if they were asked for and the mount responds.
        #[serde(default)]
        counts: Option<Counts>,
    },
}

/// Size and use of a file system (statvfs(3)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Size of a block in bytes.
    pub unit: u64,
    /// All blocks, those that are free, and those that users other than root may still use.
    pub blocks: [u64; 3],
    /// The same for inodes.
    pub inodes: [u64; 3],
}

impl Message {
    /// Prints the message to stdout.
    ///
    /// # Errors
    /// Fails if stdout is closed.
    pub fn send(self) -> Result<()> {
        let fail = |e: std::io::Error| Error::system("cannot write to stdout").because(e);
        let mut line = serde_json::to_vec(&self).map_err(|e| fail(e.into()))?;
        line.push(b'\n');
        std::io::stdout().write_all(&line).map_err(fail)
    }

    /// Parses a line. Returns `None` if it is no message.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_message_is_parsed_again() {
        let health = Health::Hung;
        for message in [
            Message::Done,
            Message::Failed(16),
            Message::Probed {
                index: 7,
                health,
                counts: Some(Counts::default()),
            },
        ] {
            let line = serde_json::to_string(&message).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Message::parse(&line), Some(message));
        }
        assert_eq!(Message::parse("done"), None);
    }
}
