//! Limit on the number of helpers that run at once, and the sections of the queue.

use std::io::ErrorKind;
use std::path::Path;
use std::{fs, thread};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::hash::hash;
use crate::options::Options;

/// Settings file of the host's administrator: a number, and comments that begin with `#`.
pub(super) const SETTING: &str = "/etc/spc/helpers";

/// Option of one mount: its helper starts when fewer helpers than this number run; 0 means at once.
pub(super) const OPTION: &str = "x-spc.helpers";

/// Size of a section of the queue's file, as a power of two: first slots, then tickets.
const SECTION_BITS: u32 = 32;

/// Section for the mounts of pods, behind those of all servers.
pub(super) const PODS: i64 = ((1 << 30) + 1) << SECTION_BITS;

/// Returns the section for the mounts of a server. Those of pods have one of their own, since they
/// could be silent on purpose where others are not: at another port, for example.
pub(super) fn section_of(server: &str, of_pod: bool) -> i64 {
    let name = match of_pod {
        true => format!("pods {server}"),
        false => server.to_owned(),
    };
    // The first section is for the mounts of all servers.
    (i64::from(u32::try_from(hash(Path::new(&name)) >> 34).unwrap_or(0)) + 1) << SECTION_BITS
}

/// Default number of helpers per processor. Helpers mostly wait for a server.
const PER_PROCESSOR: usize = 4;
/// Smallest default.
const MIN: usize = 8;
/// Largest default.
const MAX: usize = 128;

/// Limit on running helpers, for the whole host and per server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimit {
    total: Option<usize>,
}

impl SlotLimit {
    /// Returns the limit from the mount's options, else from the host's settings file, else a
    /// default by the number of processors.
    ///
    /// # Errors
    /// The option or the setting is not a number, or the settings file cannot be read.
    pub fn from_options(options: &Options, host: &Host) -> Result<Self> {
        let option = match options.value(OPTION) {
            None if options.has(OPTION) => Some(number("")),
            None => None,
            Some(value) => Some(number(value)),
        };
        let hint = "give the largest number of helpers that may run at once, or 0 for no limit";
        if let Some(option) = option {
            let bad = |cause| Error::usage(format!("bad option {OPTION}: {cause}")).hint(hint);
            return Ok(Self::from(option.map_err(bad)?));
        }
        let setting = host.run("reading the host's settings", || {
            fs::read_to_string(SETTING)
        })?;
        match setting {
            Ok(text) => {
                let bad = |cause: String| {
                    Error::system(format!("broken settings: {SETTING} on the host"))
                        .because(cause)
                        .hint(hint)
                };
                Ok(Self::from(parse_setting(&text).map_err(bad)?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let processors = thread::available_parallelism().map_or(1, usize::from);
                Ok(Self::from((processors * PER_PROCESSOR).clamp(MIN, MAX)))
            }
            Err(error) => Err(Error::system(format!("cannot read {SETTING} on the host"))
                .because(error)
                .hint("remove the file to use the default limit")),
        }
    }

    fn from(number: usize) -> Self {
        Self {
            total: (number > 0).then_some(number),
        }
    }

    /// Returns the limit for the whole host, or `None` for no limit.
    pub fn total(self) -> Option<usize> {
        self.total
    }

    /// Returns the limit for the mounts of one server: half of the total, rounded up.
    pub fn per_server(self) -> Option<usize> {
        self.total.map(|total| total.div_ceil(2))
    }

    /// Returns the limit for the mounts of pods: three quarters of the total, rounded up.
    pub fn for_pods(self) -> Option<usize> {
        self.total.map(|total| total - total / 4)
    }
}

fn number(word: &str) -> std::result::Result<usize, String> {
    word.parse()
        .map_err(|_| format!("not a number: {}", word.escape_default()))
}

/// Parses a settings file.
fn parse_setting(text: &str) -> std::result::Result<usize, String> {
    let lines = text.lines().map(|line| line.split('#').next());
    let words: Vec<&str> = lines.flatten().flat_map(str::split_whitespace).collect();
    number(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_slots_of_their_own_for_a_server() {
        assert_ne!(section_of("a", true), section_of("a", false));
        assert_ne!(section_of("a", true), section_of("b", true));
        assert!((1..PODS).contains(&section_of("a", true)));
    }

    #[test]
    fn setting_other_than_one_number_is_refused() {
        for (text, limit) in [("16", 16), ("# many\n\n 0 # or any\n", 0)] {
            assert_eq!(parse_setting(text), Ok(limit), "{text}");
        }
        for bad in ["", "# 16", "many", "-1", "8 9", "1.5"] {
            let error = parse_setting(bad).unwrap_err();
            assert!(error.starts_with("not a number: "), "{bad}");
        }
        assert_eq!(SlotLimit::from(0).per_server(), None);
        assert_eq!(SlotLimit::from(1).per_server(), Some(1));
        assert_eq!(SlotLimit::from(9).per_server(), Some(5));
        assert_eq!(SlotLimit::from(8).for_pods(), Some(6));
    }
}
