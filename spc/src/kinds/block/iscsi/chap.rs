//! CHAP: names are options, passwords are secrets; both become settings of records.

use crate::error::{Error, Result};
use crate::kinds::block::model::Value;
use crate::kinds::model::Asked;

/// Secrets that are for it.
pub(super) const SECRETS: [&str; 4] = [
    "password",
    "password_in",
    "discovery.password",
    "discovery.password_in",
];

/// Method, name and password of ours, name and password of the target's.
pub(super) type Keys = [&'static str; 5];

pub(super) const SESSION: Keys = [
    "node.session.auth.authmethod",
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];

pub(super) const DISCOVERY: Keys = [
    "discovery.sendtargets.auth.authmethod",
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];

/// Settings for CHAP, if a name was given for it.
pub(super) fn credentials(
    asked: &Asked<'_>,
    prefix: &str,
    keys: &Keys,
) -> Result<Vec<(&'static str, Value)>> {
    let option = |name: &str| asked.options.value(&format!("{prefix}{name}"));
    // A name and a password, or neither.
    let pair = |name: &str, word: &str| {
        let key = format!("{prefix}{word}");
        let known = SECRETS.into_iter().find(|known| *known == key);
        let known = known.filter(|key| asked.secrets.has(key));
        match (option(name), known) {
            (Some(user), Some(key)) => Ok(Some((user.to_owned(), Value::Secret(key)))),
            (None, None) => Ok(None),
            _ => Err(Error::usage(format!(
                "bad options: {prefix}{name} and {prefix}{word} go together"
            ))
            .hint(format!(
                "give both: -o {prefix}{name}=NAME --secret {key}=file:PATH"
            ))),
        }
    };
    // Taking a device away needs neither.
    let (user, user_in) = (pair("user", "password")?, pair("user_in", "password_in")?);
    let Some((user, password)) = user else {
        return match user_in {
            Some(_) => Err(Error::usage(format!(
                "bad options: {prefix}user_in without {prefix}user"
            ))
            .hint("with mutual CHAP both sides have a name and a password")),
            None => Ok(Vec::new()),
        };
    };
    let mut settings = vec![
        (keys[0], Value::Text("CHAP".into())),
        (keys[1], Value::Text(user)),
        (keys[2], password),
    ];
    if let Some((user, password)) = user_in {
        settings.push((keys[3], Value::Text(user)));
        settings.push((keys[4], password));
    }
    Ok(settings)
}
