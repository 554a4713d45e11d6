//! Where a mount is repaired, as its options say.

use crate::error::{Error, Result};
use crate::options::Options;

/// The option that says what is repaired.
pub const OPTION: &str = "x-spc.repair";

/// Where a new mount takes the place of a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Nowhere: it stays dead until somebody unmounts it.
    No,
    /// On the host.
    Host,
    /// On the host, and in every container that has the dead one bound.
    Containers,
}

impl Extent {
    /// What the options of a mount say.
    ///
    /// # Errors
    /// The option has no such value.
    pub fn of(options: &Options) -> Result<Self> {
        let bad = |what: String| {
            Error::usage(format!("bad option {OPTION}: {what}")).hint("say host, containers or no")
        };
        match options.value(OPTION) {
            None if options.has(OPTION) => Err(bad("it has no value".into())),
            None | Some("host") => Ok(Self::Host),
            Some("containers") => Ok(Self::Containers),
            Some("no") => Ok(Self::No),
            Some(other) => Err(bad(format!("not {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repaired_is_said_by_an_option() {
        let extent = |options: &str| Extent::of(&Options::parse([options]).unwrap());
        assert_eq!(extent("ro").unwrap(), Extent::Host);
        assert_eq!(extent("x-spc.repair=host").unwrap(), Extent::Host);
        assert_eq!(
            extent("ro,x-spc.repair=containers").unwrap(),
            Extent::Containers
        );
        assert_eq!(extent("x-spc.repair=no").unwrap(), Extent::No);
        for bad in ["x-spc.repair", "x-spc.repair=", "x-spc.repair=yes"] {
            assert!(
                extent(bad).unwrap_err().to_string().contains("say host"),
                "{bad}"
            );
        }
    }
}
