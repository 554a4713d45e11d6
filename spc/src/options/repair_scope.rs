//! Where a mount is repaired, as its options say.

use crate::error::{Error, Result};
use crate::options::Options;

/// The option that says what is repaired.
pub const OPTION: &str = "x-spc.repair";

/// Where a new mount takes the place of a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairScope {
    /// Nowhere: it stays dead until somebody unmounts it.
    No,
    /// On the host.
    Host,
    /// On the host, and in every container that has the dead one bound.
    Containers,
}

impl RepairScope {
    /// What the options of a mount say.
    ///
    /// # Errors
    /// The option has no such value.
    pub fn from_options(options: &Options) -> Result<Self> {
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
        let extent = |options: &str| RepairScope::from_options(&Options::parse([options]).unwrap());
        assert_eq!(extent("ro").unwrap(), RepairScope::Host);
        assert_eq!(extent("x-spc.repair=host").unwrap(), RepairScope::Host);
        assert_eq!(
            extent("ro,x-spc.repair=containers").unwrap(),
            RepairScope::Containers
        );
        assert_eq!(extent("x-spc.repair=no").unwrap(), RepairScope::No);
        for bad in ["x-spc.repair", "x-spc.repair=", "x-spc.repair=yes"] {
            assert!(
                extent(bad).unwrap_err().to_string().contains("say host"),
                "{bad}"
            );
        }
    }
}
