//! Repair scope of a mount, from its options.

use crate::error::{Error, Result};
use crate::options::Options;

/// Option with the repair scope.
pub const OPTION: &str = "x-spc.repair";

/// Places where a new mount replaces a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairScope {
    /// No repair: the dead mount stays until it is unmounted.
    No,
    /// The host.
    Host,
    /// The host, and all containers that have bound the dead mount.
    Containers,
}

impl RepairScope {
    /// Reads the scope from the options of a mount; the default is the host.
    ///
    /// # Errors
    /// Fails if the option has no value or an unknown one.
    pub fn from_options(options: &Options) -> Result<Self> {
        let bad = |what: String| {
            Error::usage(format!("bad option {OPTION}: {what}")).hint("use host, containers or no")
        };
        match options.value(OPTION) {
            None if options.has(OPTION) => Err(bad("it has no value".into())),
            None | Some("host") => Ok(Self::Host),
            Some("containers") => Ok(Self::Containers),
            Some("no") => Ok(Self::No),
            Some(other) => Err(bad(format!("unknown value: {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_the_host_unless_the_option_sets_another() {
        let scope = |options: &str| RepairScope::from_options(&Options::parse([options]).unwrap());
        assert_eq!(scope("ro").unwrap(), RepairScope::Host);
        assert_eq!(scope("x-spc.repair=host").unwrap(), RepairScope::Host);
        assert_eq!(
            scope("ro,x-spc.repair=containers").unwrap(),
            RepairScope::Containers
        );
        assert_eq!(scope("x-spc.repair=no").unwrap(), RepairScope::No);
        for bad in ["x-spc.repair", "x-spc.repair=", "x-spc.repair=yes"] {
            assert!(
                scope(bad).unwrap_err().to_string().contains("use host"),
                "{bad}"
            );
        }
    }
}
