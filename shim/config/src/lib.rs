//! Settings of the shim and the launcher: the file `shim.conf` and variables of the environment.
//!
//! A pure parser: no allocation, no I/O, `core` only.
//!
//! Each line of the file is a key and its values, separated by blanks. So no value can contain a
//! blank. A key may repeat, which adds values. A key in the file replaces the built-in values of
//! that key. Values from the environment precede those of the file: a namespace given there is
//! tried first.

#![cfg_attr(not(test), no_std)]

pub mod words;

use words::{index, is_dots, next_word, same, split_once};

/// Path of the settings file.
pub const FILE: &core::ffi::CStr = c"/etc/spc/shim.conf";

/// Length limit of the file in bytes.
pub const TEXT_MAX: usize = 16 * 1024;

/// Space for all values in bytes. Those of the longest file take one and a half times its length,
/// so that the built-in ones always fit.
const VALUES_MAX: usize = 2 * TEXT_MAX;

/// Key of a value: its index in [`KEYS`].
type Key = u8;

/// Names of the keys. One text, because each string of a table would need a relocation.
const KEYS: &[u8] = b"namespace host type target operation claims report";
const NAMESPACE: Key = 0;
const HOST: Key = 1;
const TYPE: Key = 2;
const TARGET: Key = 3;
const OPERATION: Key = 4;
const REDIRECTS: Key = 5;
const REPORT: Key = 6;
/// Flag of values from the environment.
const FROM_ENV: Key = 0x10;

/// Names of the variables, in the order of the keys, each ended by a NUL. `=` stands for none. The
/// last one is an older name of `SPC_HOST`.
pub const VARIABLES: &[u8] =
    b"SPC_NAMESPACE\0SPC_HOST\0SPC_TYPES\0SPC_TARGETS\0SPC_OPERATIONS\0=\0SPC_REPORT\0sysimage\0";
/// Number of [`VARIABLES`].
pub const VARIABLE_COUNT: u8 = SYSIMAGE + 1;
const SYSIMAGE: Key = 7;
/// Words for [`Operation`].
const OPERATIONS: &[u8] = b"remount bind move propagation";

/// Built-in settings.
const DEFAULTS: &[u8] = b"namespace /host/proc/1/ns/mnt /proc/1/ns/mnt
host /host
type fuse fuse.* fuseblk nfs nfs4 ceph cifs smb3 9p
claims /spc/targets
report /spc/report.sock";

/// Changes of existing mounts, which go to the host only if the settings list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// New flags or options for a mount.
    Remount,
    /// A bind mount.
    Bind,
    /// A mount moved to another mount point.
    Move,
    /// A new propagation type: shared, private, slave, unbindable.
    Propagation,
}

/// Error in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line of the file, from 1; 0 for an error in the environment.
    pub line: u32,
    /// Description of the error.
    pub reason: &'static str,
}

/// Kind of an error.
#[derive(Clone, Copy)]
pub enum ErrorKind {
    /// The first word of a line is not a key.
    UnknownKey,
    /// A key without values.
    NoValue,
    /// A value that is not valid for its key.
    BadValue,
    /// More than the file or all values may have.
    TooLong,
}

impl ErrorKind {
    fn reason(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown key",
            Self::NoValue => "no value",
            Self::BadValue => "bad value",
            Self::TooLong => "too long",
        }
    }
}

/// Settings. All zero bytes are a valid value without any setting.
#[repr(C)]
pub struct Config {
    /// Values one after the other: for each the key, the bytes and a NUL.
    text: [u8; VALUES_MAX],
    used: usize,
    /// Bit per key: a line with the key has been parsed.
    keys_present: u8,
    /// Bit per operation: the settings redirect the operation.
    operations: u8,
    /// Bit per key: there is a value of the key. The type `none` is no value.
    keys_with_values: u8,
}

impl Config {
    /// Returns a value without any setting, not even the built-in ones.
    const fn empty() -> Self {
        Self {
            text: [0; VALUES_MAX],
            used: 0,
            keys_present: 0,
            operations: 0,
            keys_with_values: 0,
        }
    }

    /// Parses the text of a settings file. Keys that the text lacks get their built-in values.
    ///
    /// # Errors
    /// Fails at the first line that is not valid or that is beyond the length limit.
    pub fn parse_file(text: &[u8]) -> Result<Self, ConfigError> {
        if let Some((within, [_, ..])) = text.split_at_checked(TEXT_MAX) {
            return Err(ConfigError {
                line: 1 + within
                    .iter()
                    .map(|byte| u32::from(*byte == b'\n'))
                    .sum::<u32>(),
                reason: ErrorKind::TooLong.reason(),
            });
        }
        let mut config = Self::empty();
        match config.parse_in_place(text) {
            (_, None) => Ok(config),
            (line, Some(kind)) => Err(ConfigError {
                line,
                reason: kind.reason(),
            }),
        }
    }

    /// Adds the values of one variable of the environment. Ignores a variable that is not one of
    /// [`VARIABLES`].
    ///
    /// # Errors
    /// Fails if a value is not valid.
    pub fn add_env(&mut self, name: &[u8], value: &[u8]) -> Result<(), ConfigError> {
        let variable = index(VARIABLES, name);
        match variable.and_then(|variable| self.add_variable(variable, value)) {
            None => Ok(()),
            Some(kind) => Err(ConfigError {
                line: 0,
                reason: kind.reason(),
            }),
        }
    }

    /// Parses a file like [`Config::parse_file`], in place, for callers with a small stack. `self`
    /// must have no settings, and the text at most [`TEXT_MAX`] bytes. Returns
    /// the number of the last line read, and its error.
    pub fn parse_in_place(&mut self, text: &[u8]) -> (u32, Option<ErrorKind>) {
        let result = self.load_lines(text, 0);
        // Needed after an error too: the built-in settings name the socket for its report.
        self.load_lines(DEFAULTS, self.keys_present);
        result
    }

    #[inline(never)]
    fn load_lines(&mut self, mut text: &[u8], skip: u8) -> (u32, Option<ErrorKind>) {
        let mut line = 1;
        loop {
            let (words, rest) = split_once(text, b'\n');
            let error = self.load_line(words, skip);
            match rest {
                Some(rest) if error.is_none() => text = rest,
                _ => return (line, error),
            }
            line += 1;
        }
    }

    fn load_line(&mut self, mut line: &[u8], skip: u8) -> Option<ErrorKind> {
        let name = next_word(&mut line);
        if name.is_empty() {
            return None;
        }
        let Some(key) = index(KEYS, name) else {
            return Some(ErrorKind::UnknownKey);
        };
        if skip & 1 << key != 0 {
            return None;
        }
        self.keys_present |= 1 << key;
        let before = self.used;
        match self.add_list(key, line) {
            None if self.used == before => Some(ErrorKind::NoValue),
            result => result,
        }
    }

    /// Adds the values of the variable with this index in [`VARIABLES`], like [`Config::add_env`].
    pub fn add_variable(&mut self, variable: u8, value: &[u8]) -> Option<ErrorKind> {
        match variable {
            HOST | SYSIMAGE => self.add_host(value),
            key => self.add_list(key | FROM_ENV, value),
        }
    }

    /// Adds a directory at which the container sees the host's root. Adds the namespace file in its
    /// `/proc` too.
    fn add_host(&mut self, mut root: &[u8]) -> Option<ErrorKind> {
        while let Some((b'/', shorter)) = root.split_last() {
            root = shorter;
        }
        if root.is_empty() {
            return None;
        }
        self.add(HOST | FROM_ENV, root, b"")
            .or_else(|| self.add(NAMESPACE | FROM_ENV, root, b"/proc/1/ns/mnt"))
    }

    #[inline(never)]
    fn add_list(&mut self, key: Key, mut words: &[u8]) -> Option<ErrorKind> {
        loop {
            let word = next_word(&mut words);
            if word.is_empty() {
                return None;
            }
            let error = self.add(key, word, b"");
            if error.is_some() {
                return error;
            }
        }
    }

    /// Adds a value, which is `word` followed by `tail`.
    #[inline(never)]
    fn add(&mut self, key: Key, word: &[u8], tail: &[u8]) -> Option<ErrorKind> {
        let good = match key & !FROM_ENV {
            TYPE => split_once(word, b'*').1.is_none_or(<[u8]>::is_empty),
            OPERATION => {
                let operation = index(OPERATIONS, word);
                self.operations |= operation.map_or(0, |operation| 1 << operation);
                operation.is_some()
            }
            TARGET => {
                let (path, host) = split_once(word, b'=');
                is_normal(path) && host.is_none_or(is_normal)
            }
            key => is_normal(word) && (key != HOST || word.len() > 1),
        };
        if !good {
            return Some(ErrorKind::BadValue);
        }
        if key & !FROM_ENV != TYPE || !same(word, b"none") {
            self.keys_with_values |= 1 << (key & !FROM_ENV);
        }
        self.store(&[key]);
        self.store(word);
        self.store(tail);
        self.store(&[0]);
        (self.used == VALUES_MAX).then_some(ErrorKind::TooLong)
    }

    /// Appends bytes to the values, as far as they fit. [`Config::add`] detects an overflow.
    #[inline(never)]
    fn store(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(to) = self.text.get_mut(self.used) {
                *to = *byte;
                self.used += 1;
            }
        }
    }

    fn values(&self, key: Key) -> Values<'_> {
        Values {
            config: self,
            key: key | FROM_ENV,
            at: 0,
        }
    }

    /// Returns files that may be the host's mount namespace, in the order to try.
    pub fn namespaces(&self) -> Values<'_> {
        self.values(NAMESPACE)
    }

    /// Returns directories at which the container may see the host's root. With `/host` among them,
    /// `/host/x` stands for `/x` on the host.
    pub fn host_roots(&self) -> Values<'_> {
        self.values(HOST)
    }

    /// Returns type patterns of new mounts that go to the host. A `*` can only be the last byte.
    pub fn types(&self) -> Values<'_> {
        self.values(TYPE)
    }

    /// Whether the settings name a type. The word `none` names no type.
    pub fn names_a_type(&self) -> bool {
        self.keys_with_values & 1 << TYPE != 0
    }

    /// Whether the settings list a target.
    pub fn lists_a_target(&self) -> bool {
        self.keys_with_values & 1 << TARGET != 0
    }

    /// Whether only a redirect of the launcher can send a call to the host.
    pub fn redirects_nothing(&self) -> bool {
        self.keys_with_values & (1 << TYPE | 1 << TARGET | 1 << OPERATION) == 0
    }

    /// Returns the path on the host of a listed target, whose calls always go to the host. Either
    /// `path` or `mapped`, the path that it stands for on the host, must be listed.
    pub fn host_target<'a>(&'a self, path: &[u8], mapped: &[u8]) -> Option<&'a [u8]> {
        self.values(TARGET).find_map(|value| {
            let (target, host) = split_once(value, b'=');
            (same(target, path) || same(target, mapped)).then_some(host.unwrap_or(target))
        })
    }

    /// Whether the settings redirect this operation.
    pub fn redirects_operation(&self, wanted: Operation) -> bool {
        self.operations & 1 << wanted as u8 != 0
    }

    /// Returns the directory of placeholders and redirects (key `claims`).
    pub fn redirects(&self) -> Option<&[u8]> {
        self.values(REDIRECTS).last()
    }

    /// Returns sockets for reports. A report goes to the first socket that accepts it.
    pub fn report_sockets(&self) -> Values<'_> {
        self.values(REPORT)
    }
}

/// Iterator over the values of one key: first those of the environment, then those of the file.
#[derive(Clone)]
pub struct Values<'a> {
    config: &'a Config,
    key: Key,
    at: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.config.text.get(self.at..self.config.used);
            if let Some((key, rest)) = rest.and_then(<[u8]>::split_first) {
                let value = split_once(rest, 0).0;
                self.at += value.len() + 2;
                if *key == self.key {
                    return Some(value);
                }
            } else if self.key & FROM_ENV != 0 {
                self.key &= !FROM_ENV;
                self.at = 0;
            } else {
                return None;
            }
        }
    }
}

/// Whether a path is absolute and has no `.`, no `..`, and no doubled or trailing slash. Such paths
/// can be compared byte by byte.
#[inline(never)]
fn is_normal(path: &[u8]) -> bool {
    let (before, mut rest) = split_once(path, b'/');
    while let Some(names) = rest.filter(|_| path.len() > 1) {
        let (name, more) = split_once(names, b'/');
        if is_dots(name) {
            return false;
        }
        rest = more;
    }
    before.is_empty() && !path.is_empty()
}

#[cfg(test)]
mod tests;
