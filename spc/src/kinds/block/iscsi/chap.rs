//! CHAP authentication: names are options, passwords are secrets. Both become settings of
//! Open-iSCSI's records.

use crate::error::{Error, Result};
use crate::kinds::block::model::Value;
use crate::kinds::model::KindInput;

/// Names of the secrets.
pub(super) const SECRETS: [&str; 4] = [
    "password",
    "password_in",
    "discovery.password",
    "discovery.password_in",
];

/// Keys of settings: method, name and password of the initiator, name and password of the target.
pub(super) type Keys = [&'static str; 5];

/// Keys for the login of a session.
pub(super) const SESSION: Keys = [
    "node.session.auth.authmethod",
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];

/// Keys for a discovery.
pub(super) const DISCOVERY: Keys = [
    "discovery.sendtargets.auth.authmethod",
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];

/// Returns the settings for CHAP; empty if the options have no name for it. `prefix` is the
/// beginning of the options' names, `discovery.` or empty.
///
/// # Errors
/// Fails if a name has no password or a password no name, and for mutual CHAP without `user`.
pub(super) fn credentials(
    input: &KindInput<'_>,
    prefix: &str,
    keys: &Keys,
) -> Result<Vec<(&'static str, Value)>> {
    let option = |name: &str| input.options.value(&format!("{prefix}{name}"));
    let name_and_password = |name: &str, password: &str| {
        let key = format!("{prefix}{password}");
        let secret = SECRETS.into_iter().find(|secret| *secret == key);
        let secret = secret.filter(|key| input.secrets.has(key));
        match (option(name), secret) {
            (Some(user), Some(key)) => Ok(Some((user.to_owned(), Value::Secret(key)))),
            (None, None) => Ok(None),
            _ => Err(Error::usage(format!(
                "bad options: {prefix}{name} and {prefix}{password} go together"
            ))
            .hint(format!(
                "give both: -o {prefix}{name}=NAME --secret {key}=file:PATH"
            ))),
        }
    };
    let user = name_and_password("user", "password")?;
    let user_in = name_and_password("user_in", "password_in")?;
    let Some((user, password)) = user else {
        return match user_in {
            Some(_) => Err(Error::usage(format!(
                "bad options: {prefix}user_in without {prefix}user"
            ))
            .hint("mutual CHAP needs a name and a password for each side")),
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
