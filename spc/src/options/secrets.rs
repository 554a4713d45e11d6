//! Secrets of a request. Their values are never printed or recorded. A program gets them by a file
//! in memory (`helper/secret_fds.rs`); Open-iSCSI by its records, which only root can read
//! (`block/node_record.rs`).

use std::collections::BTreeSet;
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

/// Replacement for the value of a secret in output.
pub const MASK: &str = "***";

/// Largest secret in bytes; the rest of a longer file or line is not read.
const MAX_BYTES: u64 = 64 * 1024;

/// Length from which a word of a file is masked where it stands alone, in bytes.
const LONG_WORD: usize = 8;

/// Names of options whose value is a secret, for all types. The part of a name after its last dot
/// counts, as in `node.session.auth.password`.
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

/// Returns whether the value of an option with this name is a secret.
pub fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    NAMES.iter().any(|name| name.eq_ignore_ascii_case(last))
}

/// Value of a secret. Implements neither `Debug`, `Display` nor `Clone`, so that it is not printed
/// or copied by accident.
pub struct Secret(String);

impl Secret {
    /// Returns the value, to write it into the file for a program.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Source of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// Value of an option.
    Option,
    /// File of the container; below `/host`, of the host.
    File(PathBuf),
    /// Environment variable with this name.
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
    /// None until the secret is read.
    value: Option<Arc<Secret>>,
}

/// Secrets of one request, by name. The name of a secret is the name of its option. Beside them
/// are parts of files that options name, which are masked as well.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Entry>, Vec<Arc<Secret>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.keys().map(|key| (key, MASK)))
            .finish()
    }
}

impl Secrets {
    /// Returns whether there is a secret with this name.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|entry| entry.key == key)
    }

    /// Returns whether there are no secrets.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.key.as_str())
    }

    /// Returns the names, each with its origin for `spc explain`, such as `file:PATH`.
    pub fn origins(&self) -> impl Iterator<Item = (&str, String)> {
        self.0
            .iter()
            .map(|entry| (entry.key.as_str(), entry.origin.to_string()))
    }

    /// Returns the value of a secret; none if there is no such secret or it has not been read.
    pub fn get(&self, key: &str) -> Option<&Secret> {
        self.0
            .iter()
            .find(|entry| entry.key == key)?
            .value
            .as_deref()
    }

    /// Returns the environment variables that hold a secret. Subprocesses must not inherit them.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|entry| match &entry.origin {
            Origin::Environment(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Replaces each value in a text by [`MASK`].
    pub fn mask(&self, text: &str) -> String {
        let mut values: Vec<&str> = self
            .0
            .iter()
            .filter_map(|entry| entry.value.as_ref())
            .chain(&self.1)
            .map(|secret| secret.expose())
            .filter(|value| !value.is_empty())
            .collect();
        // The longest first, since a value may be a part of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values
            .iter()
            .fold(text.to_owned(), |text, value| mask_value(&text, value))
    }

    /// Adds the contents of a file that an option names, to be masked: each line, the value after an
    /// equals sign, and long words. A program that cannot read such a file may print it.
    pub fn hide_contents(&mut self, contents: &[u8]) {
        let text = String::from_utf8_lossy(contents);
        let lines = text.lines().flat_map(|line| {
            let value = line.split_once('=').map(|(_, value)| value);
            [Some(line), value].into_iter().flatten()
        });
        let is_end = |c: char| c.is_whitespace() || "\"'=,:{}[]".contains(c);
        let words = text.split(is_end).filter(|word| word.len() >= LONG_WORD);
        let parts: BTreeSet<&str> = lines.chain(words).map(str::trim).collect();
        let hidden = parts.into_iter().filter(|part| !part.is_empty());
        self.1
            .extend(hidden.map(|part| Arc::new(Secret(part.to_owned()))));
    }

    /// Adds a secret whose value was given as an option.
    ///
    /// # Errors
    /// Fails if the name is there already, or if the value holds a NUL byte or a line break.
    pub fn add_value(&mut self, key: &str, value: String) -> Result<()> {
        let value = validated(key, value)?;
        self.add(key, Origin::Option, Some(value))
    }

    /// Adds a secret by `KEY=file:PATH`, `KEY=env:NAME` or `KEY=stdin`. [`Self::read`] reads it.
    ///
    /// # Errors
    /// Fails if the name is there already, or if the text has none of these forms. The error does
    /// not quote the text, which may be a secret.
    pub fn add_reference(&mut self, text: &str) -> Result<()> {
        let (key, from) = text.split_once('=').unwrap_or((text, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if key.is_empty() || !key.chars().all(plain) || from.is_empty() {
            return Err(Error::usage("bad --secret: not KEY=FROM")
                .hint("for example --secret password=file:/run/secrets/password; KEY is the name of the option, FROM is file:PATH, env:NAME or stdin"));
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
                    "use {key}=file:PATH, {key}=env:NAME or {key}=stdin"
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

    /// Reads all secrets that have not been read. `cancel` is checked every 50 ms.
    ///
    /// # Errors
    /// Fails if a secret cannot be read in time, if it is empty, not UTF-8 or more than one line,
    /// or if `cancel` is triggered.
    pub fn read(&mut self, host: &Arc<Host>, cancel: CancelToken<'_>) -> Result<()> {
        for entry in self.0.iter_mut().filter(|entry| entry.value.is_none()) {
            let (key, origin) = (entry.key.clone(), entry.origin.clone());
            let fail = |cause: &str| {
                let hint = match origin {
                    Origin::File(_) => {
                        "name a file with one line, of the container, or of the host as in file:/host/etc/key"
                    }
                    Origin::Environment(_) => "docker exec passes a variable with -e NAME",
                    _ => {
                        "write the secret to the command's standard input; docker exec needs -i for that"
                    }
                };
                Error::usage(format!("cannot read the secret {key} from {origin}"))
                    .because(cause)
                    .hint(hint)
            };
            let (sender, receiver) = channel();
            let read = {
                let (origin, host, hosts) =
                    (origin.clone(), Arc::clone(host), host.settings().hosts());
                // In a thread of its own, because a file may be a pipe, or on a dead mount.
                move || drop(sender.send(read_one(&origin, &host, &hosts)))
            };
            std::thread::Builder::new()
                .spawn(read)
                .map_err(|e| fail(&errno_text(e)))?;
            let text = loop {
                match receiver.recv_timeout(Duration::from_millis(50)) {
                    Ok(result) => break result.map_err(|cause| fail(&cause))?,
                    Err(RecvTimeoutError::Timeout) if !cancel.is_expired() => cancel.check()?,
                    Err(_) => return Err(fail("timed out")),
                }
            };
            entry.value = Some(validated(&key, text)?);
        }
        Ok(())
    }
}

/// Replaces a value in a text by [`MASK`]. A value of less than four bytes is replaced as a whole
/// word only: within other words it would show where it occurs, and so what it is.
pub fn mask_value(text: &str, value: &str) -> String {
    if value.len() >= 4 {
        return text.replace(value, MASK);
    }
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut masked, mut rest, mut before) = (String::new(), text, None);
    while let Some(at) = rest.find(value).filter(|_| !value.is_empty()) {
        let (skipped, found) = rest.split_at(at);
        let after = &found[value.len()..];
        before = skipped.chars().next_back().or(before);
        masked.push_str(skipped);
        masked.push_str(match is_word(before) || is_word(after.chars().next()) {
            true => value,
            false => MASK,
        });
        before = value.chars().next_back();
        rest = after;
    }
    masked + rest
}

/// Reads one secret, without the line break at its end.
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
            return Err("it is a terminal, which would show the secret".into());
        }
        Origin::Stdin => first_line(std::io::stdin().lock()).map_err(errno_text)?,
        Origin::File(path) => {
            let inside = hosts.iter().find_map(|host| path.strip_prefix(host).ok());
            match inside {
                Some(inside) => {
                    let path = Path::new("/").join(inside);
                    host.run("reading a secret", move || read_file(File::open(&path)?))
                        .map_err(|e| e.summary())?
                }
                None => caller::open_named(path).and_then(read_file),
            }
            .map_err(errno_text)?
        }
    };
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let text = without_file_marks(&text);
    if text.is_empty() {
        return Err("it is empty".into());
    }
    Ok(text.to_owned())
}

/// Returns a text without the byte order mark at its beginning and the line break at its end, which
/// may be one of Windows.
fn without_file_marks(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => text,
    }
}

fn read_file(file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads up to a line break or the end. The writer may keep its end of a pipe open.
fn first_line(input: impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    input.take(MAX_BYTES).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Refuses line breaks and NUL bytes: a program would read only the part before them.
fn validated(key: &str, text: String) -> Result<Arc<Secret>> {
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
    fn short_secrets_are_masked_as_words_and_files_by_their_parts() {
        for (text, value, masked) in [
            ("b is b, /usr/sbin/x b", "b", "*** is ***, /usr/sbin/x ***"),
            ("bb abb bb_ bb", "bb", "*** abb bb_ ***"),
            ("long enough", "enou", "long ***gh"),
        ] {
            assert_eq!(mask_value(text, value), masked);
        }
        let mut secrets = Secrets::default();
        let keyring = b"[client.app]\n\tkey = AQDh3Bl==\n{\"k\":\"AQDjson3Bl==\"}";
        secrets.hide_contents(keyring);
        let shown = secrets.mask("cannot decode '[client.app]\n\tkey = AQDh3Bl==', AQDjson3Bl");
        assert!(!shown.contains("AQD"), "{shown}");
        assert!(shown.starts_with("cannot decode '"), "{shown}");
    }

    #[test]
    fn options_with_secret_values_are_recognised_by_name() {
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
        secrets.add_value("password", "hunter2".into()).unwrap();
        secrets.add_value("secret", "hunter".into()).unwrap();
        secrets.add_value("token", String::new()).unwrap();
        assert_eq!(
            secrets.mask("bad: hunter2 and hunter, password"),
            "bad: *** and ***, password"
        );
        assert!(!secrets.is_empty() && Secrets::default().is_empty());
        let shown = format!("{secrets:?}");
        assert!(shown.contains("password") && !shown.contains("hunter"));
        assert!(
            secrets.add_value("secret", "x".into()).is_err(),
            "given twice"
        );
        for bad in ["a\nb", "a\0b"] {
            let error = secrets
                .add_value("pass", bad.into())
                .unwrap_err()
                .to_string();
            assert!(!error.contains(bad), "{error}");
        }
    }

    #[test]
    fn references_to_secrets_are_parsed_and_errors_do_not_quote_them() {
        let mut secrets = Secrets::default();
        secrets.add_reference("password=file:/a=b:c").unwrap();
        secrets.add_reference("secret=env:NAME").unwrap();
        secrets.add_reference("key=stdin").unwrap();
        let origins: Vec<_> = secrets.origins().map(|(_, from)| from).collect();
        assert_eq!(origins, ["file:/a=b:c", "env:NAME", "stdin"]);
        assert_eq!(secrets.variables().collect::<Vec<_>>(), ["NAME"]);
        for bad in [
            "password=hunter2",
            "pass=hunter2",
            "pass=file:",
            "pass=env:",
            "pass",
            "=file:/a",
            "pass word=file:/a",
            "=stdin",
            "hunter2",
            "token=stdin",
            "secret=env:OTHER",
        ] {
            let error = secrets.add_reference(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn marks_of_text_files_are_no_part_of_a_secret() {
        for (text, secret) in [
            ("hunter2\n", "hunter2"),
            ("hunter2\r\n", "hunter2"),
            ("\u{feff}hunter2\r\n", "hunter2"),
            ("hunter2\r", "hunter2\r"),
            (" hunter2 \n", " hunter2 "),
            ("\r\n", ""),
        ] {
            assert_eq!(without_file_marks(text), secret);
        }
    }

    #[test]
    fn stdin_is_read_to_the_first_line_break() {
        assert_eq!(first_line(&b"abc\nrest"[..]).unwrap(), b"abc\n");
        assert_eq!(first_line(&b"abc"[..]).unwrap(), b"abc");
    }

    #[test]
    fn no_more_than_64_kib_of_a_secret_are_read() {
        let zeros = File::open("/dev/zero").unwrap();
        assert_eq!(read_file(zeros).unwrap(), [0; 65536]);
        assert_eq!(first_line(&[b'x'; 70_000][..]).unwrap(), [b'x'; 65536]);
    }
}
