//! How many helpers may be at work at once.

use std::io::ErrorKind;
use std::{fs, thread};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::options::Options;

/// On the host, by whoever runs it: a number, and comments that begin with `#`.
pub(super) const SETTING: &str = "/etc/spc/helpers";

/// The option for one mount: it starts as soon as fewer helpers than this are at work, and with 0 at once.
pub(super) const OPTION: &str = "x-spc.helpers";

/// Helpers at once for each processor: most of the time they wait for a server. And no fewer and no more than these.
const PER_PROCESSOR: usize = 4;
const LEAST: usize = 8;
const MOST: usize = 128;

/// How many helpers may be at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    all: Option<usize>,
}

impl Limit {
    /// What the options of a mount say, else the host's setting, else what the machine has.
    ///
    /// # Errors
    /// One of them is no number.
    pub fn from_options(options: &Options, host: &Host) -> Result<Self> {
        let asked = match options.value(OPTION) {
            None if options.has(OPTION) => Some(number("")),
            None => None,
            Some(value) => Some(number(value)),
        };
        let hint = "say how many helpers may be at work when one starts, or 0 for any number";
        if let Some(asked) = asked {
            let bad = |found| Error::usage(format!("bad option {OPTION}: {found}")).hint(hint);
            return Ok(Self::from(asked.map_err(bad)?));
        }
        let setting = host.run("reading the host's settings", || {
            fs::read_to_string(SETTING)
        })?;
        match setting {
            Ok(text) => {
                let bad = |found| {
                    Error::system(format!("broken settings: {SETTING} on the host"))
                        .because(found)
                        .hint(hint)
                };
                Ok(Self::from(set(&text).map_err(bad)?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let processors = thread::available_parallelism().map_or(1, usize::from);
                Ok(Self::from((processors * PER_PROCESSOR).clamp(LEAST, MOST)))
            }
            Err(error) => Err(Error::system(format!("cannot read {SETTING} on the host"))
                .because(error)
                .hint("remove it, and the machine decides")),
        }
    }

    fn from(number: usize) -> Self {
        Self {
            all: (number > 0).then_some(number),
        }
    }

    /// On the whole host; none if there is no limit.
    pub fn all(self) -> Option<usize> {
        self.all
    }

    /// For the mounts of one server.
    pub fn of_server(self) -> Option<usize> {
        self.all.map(|all| all.div_ceil(2))
    }
}

fn number(word: &str) -> std::result::Result<usize, String> {
    word.parse()
        .map_err(|_| format!("not a number: {}", word.escape_default()))
}

/// The number in the text of a settings file.
fn set(text: &str) -> std::result::Result<usize, String> {
    let lines = text.lines().map(|line| line.split('#').next());
    let words: Vec<&str> = lines.flatten().flat_map(str::split_whitespace).collect();
    number(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_number() {
        for (text, limit) in [("16", 16), ("# many\n\n 0 # or any\n", 0)] {
            assert_eq!(set(text), Ok(limit), "{text}");
        }
        for bad in ["", "# 16", "many", "-1", "8 9", "1.5"] {
            assert!(set(bad).unwrap_err().starts_with("not a number: "), "{bad}");
        }
        assert_eq!(Limit::from(0).of_server(), None);
        assert_eq!(Limit::from(1).of_server(), Some(1));
        assert_eq!(Limit::from(9).of_server(), Some(5));
    }
}
