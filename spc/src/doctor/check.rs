//! Rows of `spc doctor`.

use serde::Serialize;

use crate::error::{Error, Result, place};

/// Result of one check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Name of the check.
    pub name: String,
    /// Whether the check passed.
    pub ok: bool,
    /// Short description of the finding.
    pub found: String,
    /// Advice on how to pass the check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Turns the result of a check into a row.
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
            hint: error.hint_text().map(|hint| place::fit(hint).into_owned()),
        },
    }
}

/// Copies summary and hint of an error.
pub(crate) fn copy(error: &Error) -> Error {
    let copy = Error::system(error.summary());
    match error.hint_text() {
        Some(hint) => copy.hint(hint),
        None => copy,
    }
}
