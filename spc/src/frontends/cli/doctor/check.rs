//! One row of `spc doctor`.

use serde::Serialize;

use crate::error::{Error, Result};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The outcome of one look.
pub fn check(name: &str, result: Result<String>) -> Check {
    let name = name.to_owned();
    match result {
        Ok(found) => Check {
            name,
            ok: true,
            found,
            hint: None,
        },
        Err(error) => Check {
            name,
            ok: false,
            found: error.summary(),
            hint: error.hint_text().map(str::to_owned),
        },
    }
}

pub(crate) fn copy(error: &Error) -> Error {
    let copy = Error::system(error.summary());
    match error.hint_text() {
        Some(hint) => copy.hint(hint),
        None => copy,
    }
}
