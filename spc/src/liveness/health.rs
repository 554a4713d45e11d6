//! State of a mount.

use serde::{Deserialize, Serialize};

/// State of a mount, from a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The mount responds.
    Ok,
    /// The mount responds with an error: its server or daemon is gone.
    Stale,
    /// The mount does not respond.
    Hung,
    /// The mount no longer exists.
    Gone,
    /// A command is mounting or unmounting it, or died in the middle.
    Busy,
}

impl Health {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Stale, Self::Hung, Self::Gone, Self::Busy];

    /// Returns the word that `spc ls` prints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stale => "stale",
            Self::Hung => "hung",
            Self::Gone => "gone",
            Self::Busy => "busy",
        }
    }
}
