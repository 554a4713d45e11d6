//! The secrets of a request. Their values are in nothing that is printed or kept, and reach a
//! program only through a file in memory (`mount/handover.rs`).

use std::fmt;
use std::fs::File;
use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::{Error, Result, errno_text};
use crate::host::{Host, caller};
use crate::process::cancel::CancelToken;

/// What stands for a value wherever one would be seen.
pub const MASK: &str = "***";

/// The longest that is read.
const LONGEST: u64 = 64 * 1024;

/// Names of options whose value is a secret, whatever the type; also after a dot, as in
/// `node.session.auth.password`.
const NAMES: [&str; 13] = [
    "password",
    "password2",
    "password_in",
    "pass",
    "pass2",
    "passwd",
    "passphrase",
    "secret",
    "secret_key",
    "secret_access_key",
    "key",
    "token",
    "access_token",
];

/// Whether the value of an option of this name is a secret.
pub fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    NAMES.iter().any(|name| name.eq_ignore_ascii_case(last))
}

/// A value that nobody may see: it can be neither printed nor cloned.
pub struct Secret(String);

impl Secret {
    /// The value, for the one who hands it to a program.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// An option.
    Option,
    /// A file of the container, or below `/host` of the host.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// Standard input.
    Stdin,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option => f.write_str("an option"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Environment(name) => write!(f, "env:{name}"),
            Self::Stdin => f.write_str("stdin"),
        }
    }
}

#[derive(Clone)]
struct Entry {
    key: String,
    origin: Origin,
    /// None until it is read.
    value: Option<Arc<Secret>>,
}

/// The secrets of one request, by the names that options have for them.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Entry>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.keys().map(|key| (key, MASK)))
            .finish()
    }
}

impl Secrets {
    /// Whether there is one of this name.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|entry| entry.key == key)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.key.as_str())
    }

    /// Their names, and where each comes from.
    pub fn origins(&self) -> impl Iterator<Item = (&str, String)> {
        self.0
            .iter()
            .map(|entry| (entry.key.as_str(), entry.origin.to_string()))
    }

    /// The value of one, once it was read.
    pub fn get(&self, key: &str) -> Option<&Secret> {
        self.0
            .iter()
            .find(|entry| entry.key == key)?
            .value
            .as_deref()
    }

    /// Variables of our environment that hold one, and that no program of ours should inherit.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|entry| match &entry.origin {
            Origin::Environment(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// A text with every value in it masked.
    pub fn mask(&self, text: &str) -> String {
        let mut values: Vec<&str> = self
            .0
            .iter()
            .filter_map(|entry| Some(entry.value.as_deref()?.expose()))
            .filter(|value| !value.is_empty())
            .collect();
        // One may be a part of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values
            .iter()
            .fold(text.to_owned(), |text, value| text.replace(value, MASK))
    }

    /// Adds one that was given as an option.
    ///
    /// # Errors
    /// It is there already, or holds a NUL or a line break.
    pub fn give(&mut self, key: &str, value: String) -> Result<()> {
        let value = checked(key, value)?;
        self.add(key, Origin::Option, Some(value))
    }

    /// Adds one by `KEY=file:PATH`, `KEY=env:NAME` or `KEY=stdin`; it is read later.
    ///
    /// # Errors
    /// It is there already, or the text is none of these, which is not repeated, for it may be a secret.
    pub fn name(&mut self, text: &str) -> Result<()> {
        let (key, from) = text.split_once('=').unwrap_or((text, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if key.is_empty() || !key.chars().all(plain) || from.is_empty() {
            return Err(Error::usage("bad --secret: not KEY=FROM")
                .hint("for example --secret password=file:/run/secrets/password; KEY is called as the option of the type, FROM is file:PATH, env:NAME or stdin"));
        }
        let origin = match (from, from.split_once(':')) {
            ("stdin", _) => Origin::Stdin,
            (_, Some(("file", path))) if !path.is_empty() => Origin::File(path.into()),
            (_, Some(("env", name))) if !name.is_empty() => Origin::Environment(name.into()),
            _ => {
                return Err(Error::usage(format!(
                    "bad --secret {key}: it does not say where the secret is"
                ))
                .hint(format!(
                    "say {key}=file:PATH, {key}=env:NAME or {key}=stdin"
                )));
            }
        };
        if origin == Origin::Stdin && self.0.iter().any(|entry| entry.origin == Origin::Stdin) {
            return Err(Error::usage(format!(
                "bad --secret {key}: another one is read from stdin"
            ))
            .hint("give all but one as file:PATH or env:NAME"));
        }
        self.add(key, origin, None)
    }

    fn add(&mut self, key: &str, origin: Origin, value: Option<Arc<Secret>>) -> Result<()> {
        if self.has(key) {
            return Err(Error::usage(format!("the secret {key} is given twice"))
                .hint("give it once, as an option or by --secret"));
        }
        self.0.push(Entry {
            key: key.into(),
            origin,
            value,
        });
        Ok(())
    }

    /// Reads those that are not here yet, until `cancel` ends the wait; it is checked all
    /// the while.
    ///
    /// # Errors
    /// One cannot be read in time, or cannot be a secret.
    pub fn read(&mut self, host: &Arc<Host>, cancel: CancelToken<'_>) -> Result<()> {
        for entry in self.0.iter_mut().filter(|entry| entry.value.is_none()) {
            let (key, origin) = (entry.key.clone(), entry.origin.clone());
            let fail = |cause: &str| {
                let hint = match origin {
                    Origin::File(_) => {
                        "name a file of the container with one line, or of the host, as in file:/host/etc/key"
                    }
                    Origin::Environment(_) => "docker exec hands a variable on with -e NAME",
                    _ => "write it to the command's standard input; docker exec needs -i for that",
                };
                Error::usage(format!("cannot read the secret {key} from {origin}"))
                    .because(cause)
                    .hint(hint)
            };
            let (done, answer) = channel();
            let read = {
                let (origin, host, hosts) =
                    (origin.clone(), Arc::clone(host), host.settings().hosts());
                // A thread, because a file may be a pipe or on a dead server.
                move || drop(done.send(read_one(&origin, &host, &hosts)))
            };
            std::thread::Builder::new()
                .spawn(read)
                .map_err(|e| fail(&errno_text(e)))?;
            let text = loop {
                match answer.recv_timeout(Duration::from_millis(50)) {
                    Ok(result) => break result.map_err(|cause| fail(&cause))?,
                    Err(RecvTimeoutError::Timeout) if !cancel.is_expired() => cancel.check()?,
                    Err(_) => return Err(fail("nothing came in time")),
                }
            };
            entry.value = Some(checked(&key, text)?);
        }
        Ok(())
    }
}

/// Its text, without the line break at its end.
fn read_one(
    origin: &Origin,
    host: &Host,
    hosts: &[PathBuf],
) -> std::result::Result<String, String> {
    let bytes = match origin {
        Origin::Option => Vec::new(),
        Origin::Environment(name) => std::env::var_os(name)
            .ok_or("it is not set")?
            .into_encoded_bytes(),
        Origin::Stdin if std::io::stdin().is_terminal() => {
            return Err("it is a terminal, where what is typed can be seen".into());
        }
        Origin::Stdin => first_line(std::io::stdin().lock()).map_err(errno_text)?,
        Origin::File(path) => {
            let inside = hosts.iter().find_map(|host| path.strip_prefix(host).ok());
            match inside {
                Some(inside) => {
                    let path = Path::new("/").join(inside);
                    host.run("reading a secret", move || whole(File::open(&path)?))
                        .map_err(|e| e.summary())?
                }
                None => caller::open_named(path).and_then(whole),
            }
            .map_err(errno_text)?
        }
    };
    let mut text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() {
        return Err("it is empty".into());
    }
    Ok(text)
}

fn whole(file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Up to a line break or the end: whoever writes may keep the other end open.
fn first_line(input: impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    input.take(LONGEST).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Programs read a secret up to a line break, and C up to a NUL.
fn checked(key: &str, text: String) -> Result<Arc<Secret>> {
    if text.contains(['\0', '\n']) {
        return Err(Error::usage(format!(
            "bad secret {key}: it holds a line break or a NUL byte"
        ))
        .hint("a secret is one line"));
    }
    Ok(Arc::new(Secret(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for key in [
            "password",
            "Password",
            "node.session.auth.password_in",
            "key",
        ] {
            assert!(is_secret(key), "{key}");
        }
        for key in [
            "secretfile",
            "credentials",
            "keyring",
            "passwd_file",
            "user",
        ] {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn values_are_masked_and_names_are_not() {
        let mut secrets = Secrets::default();
        secrets.give("password", "hunter2".into()).unwrap();
        secrets.give("secret", "hunter".into()).unwrap();
        secrets.give("token", String::new()).unwrap();
        assert_eq!(
            secrets.mask("bad: hunter2 and hunter, password"),
            "bad: *** and ***, password"
        );
        let shown = format!("{secrets:?}");
        assert!(shown.contains("password") && !shown.contains("hunter"));
        assert!(secrets.give("secret", "x".into()).is_err(), "given twice");
        for bad in ["a\nb", "a\0b"] {
            let error = secrets.give("pass", bad.into()).unwrap_err().to_string();
            assert!(!error.contains(bad), "{error}");
        }
    }

    #[test]
    fn where_a_secret_is() {
        let mut secrets = Secrets::default();
        secrets.name("password=file:/a=b:c").unwrap();
        secrets.name("secret=env:NAME").unwrap();
        secrets.name("key=stdin").unwrap();
        let origins: Vec<_> = secrets.origins().map(|(_, from)| from).collect();
        assert_eq!(origins, ["file:/a=b:c", "env:NAME", "stdin"]);
        assert_eq!(secrets.variables().collect::<Vec<_>>(), ["NAME"]);
        for bad in [
            "password=hunter2",
            "pass=hunter2",
            "pass=file:",
            "pass",
            "=stdin",
            "hunter2",
            "token=stdin",
            "secret=env:OTHER",
        ] {
            let error = secrets.name(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_line_of_stdin_is_enough() {
        assert_eq!(first_line(&b"abc\nrest"[..]).unwrap(), b"abc\n");
        assert_eq!(first_line(&b"abc"[..]).unwrap(), b"abc");
    }
}
