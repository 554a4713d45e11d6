//! The settings: `shim.conf`, and what `SPC_*` in the environment adds.
//!
//! Shared by the shim and the launcher. Pure: `core` only, no allocation, no I/O.
//!
//! A key that the file names replaces its built-in value, and may repeat; a key that it does not name keeps
//! the built-in one. What the environment adds comes first, so a namespace given there is tried first. Blanks
//! end a value; a target with blanks in it cannot be named here.

#![cfg_attr(not(test), no_std)]

pub mod words;

use words::{index, is_dots, next_word, same, split_once};

/// Where the settings are.
pub const FILE: &core::ffi::CStr = c"/etc/spc/shim.conf";

/// Longest file, and longest set of values, that is accepted.
pub const TEXT_MAX: usize = 16 * 1024;

/// What a value is for: the place of its key in [`KEYS`].
type Key = u8;

/// One text, because a table of texts costs a relocation for each.
const KEYS: &[u8] = b"namespace host type target operation claims report";
const NAMESPACE: Key = 0;
const HOST: Key = 1;
const TYPE: Key = 2;
const TARGET: Key = 3;
const OPERATION: Key = 4;
const CLAIMS: Key = 5;
const REPORT: Key = 6;
/// Marks values of the environment.
const FROM_ENV: Key = 0x10;

/// In the order of [`KEYS`], and what the original had for the host. Each is a string of its own.
pub const VARIABLES: &[u8] =
    b"SPC_NAMESPACE\0SPC_HOST\0SPC_TYPES\0SPC_TARGETS\0SPC_OPERATIONS\0=\0SPC_REPORT\0sysimage\0";
/// How many they are.
pub const VARIABLE_COUNT: u8 = SYSIMAGE + 1;
const SYSIMAGE: Key = 7;
const OPERATIONS: &[u8] = b"remount bind move propagation";

const DEFAULTS: &[u8] = b"namespace /host/proc/1/ns/mnt /proc/1/ns/mnt
host /host
type fuse fuse.* fuseblk nfs nfs4 ceph cifs smb3 9p
claims /spc/targets
report /spc/report.sock";

/// Changes of existing mounts that go to the host only when the settings name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Other flags or options for a mount.
    Remount,
    /// The same tree a second time.
    Bind,
    /// A mount to another place.
    Move,
    /// Shared, private, slave, unbindable.
    Propagation,
}

/// Why settings cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Line of the file, from 1; 0 for the environment.
    pub line: u32,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What is wrong with a word or a line.
#[derive(Clone, Copy)]
pub enum Fault {
    /// The first word of a line is none of the keys.
    UnknownKey,
    /// A key alone.
    NoValue,
    /// A value that cannot be meant.
    BadValue,
    /// More than fits.
    TooLong,
}

impl Fault {
    fn reason(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown key",
            Self::NoValue => "no value",
            Self::BadValue => "bad value",
            Self::TooLong => "too long",
        }
    }
}

/// Everything that decides what happens to a call. All zero bytes are a valid value without any setting.
#[repr(C)]
pub struct Config {
    /// Values one after the other, each its key, its bytes and a NUL.
    text: [u8; TEXT_MAX],
    used: usize,
    /// A bit for each key that has a value.
    named: u8,
    /// A bit for each operation that goes to the host.
    operations: u8,
}

impl Config {
    /// No setting at all, not even the built-in ones.
    const fn empty() -> Self {
        Self {
            text: [0; TEXT_MAX],
            used: 0,
            named: 0,
            operations: 0,
        }
    }

    /// The settings of a file with this text.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse_file(text: &[u8]) -> Result<Self, Broken> {
        let mut config = Self::empty();
        match config.load(text) {
            (_, None) => Ok(config),
            (line, Some(fault)) => Err(Broken {
                line,
                reason: fault.reason(),
            }),
        }
    }

    /// Takes one variable of the environment; those that mean nothing here are ignored.
    ///
    /// # Errors
    /// A value that is wrong.
    pub fn add_env(&mut self, name: &[u8], value: &[u8]) -> Result<(), Broken> {
        let variable = index(VARIABLES, name);
        match variable.and_then(|variable| self.add_variable(variable, value)) {
            None => Ok(()),
            Some(fault) => Err(Broken {
                line: 0,
                reason: fault.reason(),
            }),
        }
    }

    /// [`Config::parse_file`] in place, for callers with a small stack; `self` must be without settings. Answers
    /// with the last line read, and what is wrong with it.
    pub fn load(&mut self, text: &[u8]) -> (u32, Option<Fault>) {
        let result = self.load_lines(text, 0);
        // Also after a mistake: then they say at least where to report it.
        self.load_lines(DEFAULTS, self.named);
        result
    }

    #[inline(never)]
    fn load_lines(&mut self, mut text: &[u8], skip: u8) -> (u32, Option<Fault>) {
        let mut line = 1;
        loop {
            let (words, rest) = split_once(text, b'\n');
            let fault = self.load_line(words, skip);
            match rest {
                Some(rest) if fault.is_none() => text = rest,
                _ => return (line, fault),
            }
            line += 1;
        }
    }

    fn load_line(&mut self, mut line: &[u8], skip: u8) -> Option<Fault> {
        let name = next_word(&mut line);
        if name.is_empty() {
            return None;
        }
        let Some(key) = index(KEYS, name) else {
            return Some(Fault::UnknownKey);
        };
        if skip & 1 << key != 0 {
            return None;
        }
        self.named |= 1 << key;
        let before = self.used;
        match self.add_list(key, line) {
            None if self.used == before => Some(Fault::NoValue),
            result => result,
        }
    }

    /// [`Config::add_env`] by the variable's place in [`VARIABLES`], and without the words for a fault.
    pub fn add_variable(&mut self, variable: u8, value: &[u8]) -> Option<Fault> {
        match variable {
            HOST | SYSIMAGE => self.add_host(value),
            key => self.add_list(key | FROM_ENV, value),
        }
    }

    /// The host's root as the original named it: its `/proc` is the first place to look for the namespace.
    fn add_host(&mut self, mut root: &[u8]) -> Option<Fault> {
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
    fn add_list(&mut self, key: Key, mut words: &[u8]) -> Option<Fault> {
        loop {
            let word = next_word(&mut words);
            if word.is_empty() {
                return None;
            }
            let fault = self.add(key, word, b"");
            if fault.is_some() {
                return fault;
            }
        }
    }

    /// Adds a value; `tail` is put after the word.
    #[inline(never)]
    fn add(&mut self, key: Key, word: &[u8], tail: &[u8]) -> Option<Fault> {
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
            return Some(Fault::BadValue);
        }
        self.store(&[key]);
        self.store(word);
        self.store(tail);
        self.store(&[0]);
        (self.used == TEXT_MAX).then_some(Fault::TooLong)
    }

    /// What does not fit is noticed at the end of the value.
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

    /// Files that may be the host's mount namespace, in the order to try.
    pub fn namespaces(&self) -> Values<'_> {
        self.values(NAMESPACE)
    }

    /// Where the host's root may be seen: a path at or below one of these is the same path on the host.
    pub fn hosts(&self) -> Values<'_> {
        self.values(HOST)
    }

    /// Type patterns of new mounts that go to the host; `*` stands only at the end.
    pub fn types(&self) -> Values<'_> {
        self.values(TYPE)
    }

    /// Where a target goes that always goes to the host; also by its `mapped` name.
    pub fn target<'a>(&'a self, path: &[u8], mapped: &[u8]) -> Option<&'a [u8]> {
        self.values(TARGET).find_map(|value| {
            let (target, host) = split_once(value, b'=');
            (same(target, path) || same(target, mapped)).then_some(host.unwrap_or(target))
        })
    }

    /// Whether this operation goes to the host.
    pub fn names(&self, wanted: Operation) -> bool {
        self.operations & 1 << wanted as u8 != 0
    }

    /// The directory where the launcher claims targets.
    pub fn claims(&self) -> Option<&[u8]> {
        self.values(CLAIMS).last()
    }

    /// Sockets to report decisions to, the first that takes one.
    pub fn reports(&self) -> Values<'_> {
        self.values(REPORT)
    }
}

/// The values of one key: first those of the environment, then those of the file.
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

/// Absolute, and without `.`, `..`, doubled or trailing slashes: comparable byte by byte.
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
