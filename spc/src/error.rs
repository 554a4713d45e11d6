//! Error of the crate: message, cause, log lines and a hint.
//!
//! The message says which action failed on which object. The hint says how to fix it.

pub mod place;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Class of an error, which selects the exit code of mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Request that is not valid or not permitted.
    Usage,
    /// Failure of the container or the host: missing privilege, namespace, disk space.
    System,
    /// Interruption by a signal.
    Interrupted,
    /// Failure of the mount or unmount itself.
    Mount,
    /// Failure of some of several targets.
    Some,
}

impl Class {
    /// Returns the exit code, as in "EXIT STATUS" of mount(8).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 1,
            Self::System => 2,
            Self::Interrupted => 8,
            Self::Mount => 32,
            Self::Some => 64,
        }
    }
}

/// Reason of a failure as one of a fixed set of words, for metrics and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Request that is not valid or not permitted.
    Usage,
    /// Failure of the container or the host.
    System,
    /// Interruption by a signal.
    Interrupted,
    /// Timeout of the operation.
    Timeout,
    /// Timeout while waiting for a helper slot.
    Queue,
    /// Failure of the mount helper.
    Helper,
    /// New mount that does not respond.
    NoAnswer,
    /// Mount helper that reported success without a mount on the host.
    NoProof,
    /// Target on which another file system is mounted.
    Occupied,
    /// Target on which a dead mount is.
    Dead,
    /// Mount that processes use.
    Busy,
    /// Target or record that another spc command has locked.
    Locked,
    /// Failure for any other reason.
    Failed,
}

impl Reason {
    /// Returns the word for this reason, as in metrics and events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::System => "system",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Queue => "queue",
            Self::Helper => "helper",
            Self::NoAnswer => "no_answer",
            Self::NoProof => "no_proof",
            Self::Occupied => "occupied",
            Self::Dead => "dead",
            Self::Busy => "busy",
            Self::Locked => "locked",
            Self::Failed => "failed",
        }
    }
}

/// Error with its context, printed as `message: cause`, then log lines, then `hint: …`.
#[derive(Debug)]
pub struct Error {
    class: Class,
    reason: Option<Reason>,
    message: String,
    cause: Option<Cause>,
    log: Vec<String>,
    hint: Option<String>,
    is_transient: bool,
}

/// Cause of an error: a text, or the error of a system call with its errno.
#[derive(Debug)]
pub struct Cause {
    text: String,
    errno: Option<i32>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self { text, errno: None }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            text: errno_text(error),
        }
    }
}

impl From<rustix::io::Errno> for Cause {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

impl From<nix::errno::Errno> for Cause {
    fn from(errno: nix::errno::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

impl From<serde_json::Error> for Cause {
    fn from(error: serde_json::Error) -> Self {
        error.to_string().into()
    }
}

/// Hints by errno, for errors without a hint of their own.
const USUAL_HINTS: [(i32, &str); 10] = [
    (libc::ENOSPC, "free space on that file system"),
    (
        libc::EROFS,
        "make that file system writable; dmesg shows whether the kernel made it read-only",
    ),
    (
        libc::EMFILE,
        "this process has too many files open: raise the limit (ulimit -n), then try again",
    ),
    (
        libc::ENFILE,
        "the machine has too many files open: raise fs.file-max, then try again",
    ),
    (
        libc::ENOMEM,
        "the container or the machine is out of memory: free memory, then try again",
    ),
    (
        libc::EAGAIN,
        "the limit of processes is reached or memory is exhausted: stop some processes, then try again",
    ),
    (
        libc::EPERM,
        "the container lacks a privilege, or a filter forbids the system call: see `spc doctor`",
    ),
    (
        libc::EACCES,
        "the container lacks a privilege, or AppArmor or SELinux forbids it: see `spc doctor`",
    ),
    (
        libc::ENOSYS,
        "the host's kernel is too old, or a filter hides the system call: see `spc doctor`",
    ),
    (libc::EBUSY, "another process is using it; try again"),
];

/// Result with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates an error of a class. `message` names the action that failed and its object.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            reason: None,
            message: message.into(),
            cause: None,
            log: Vec::new(),
            hint: None,
            is_transient: false,
        }
    }

    /// Creates a [`Class::Usage`] error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// Creates a [`Class::System`] error.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(Class::System, message)
    }

    /// Creates a [`Class::Mount`] error.
    pub fn mount(message: impl Into<String>) -> Self {
        Self::new(Class::Mount, message)
    }

    /// Sets the cause. Its errno also selects the hint, unless the error has a hint of its own.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the hint, unless the error has one.
    #[must_use]
    pub fn hint_if_none(self, hint: &str) -> Self {
        if self.hint.is_some() {
            self
        } else {
            self.hint(hint)
        }
    }

    /// Adds a hint after the present one.
    #[must_use]
    pub fn hint_also(mut self, hint: &str) -> Self {
        self.hint = Some(match self.hint {
            Some(first) => format!("{first}; {hint}"),
            None => hint.to_owned(),
        });
        self
    }

    /// Adds lines that a helper or the kernel wrote. Control characters become octal escapes: a
    /// server may have chosen them, and the reader's terminal would obey.
    #[must_use]
    pub fn log(mut self, lines: Vec<String>) -> Self {
        self.log.extend(lines.iter().map(|line| printable(line)));
        self
    }

    /// Marks a fault that a second attempt does not meet.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    /// Returns whether the same attempt may succeed when it is made again.
    pub fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// Returns the class, which selects the exit code.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Sets the reason, if it is more exact than the class.
    #[must_use]
    pub fn reason_is(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Returns the reason: the one that was set, or else the class.
    pub fn reason(&self) -> Reason {
        self.reason.unwrap_or(match self.class {
            Class::Usage => Reason::Usage,
            Class::System => Reason::System,
            Class::Interrupted => Reason::Interrupted,
            Class::Mount | Class::Some => Reason::Failed,
        })
    }

    /// Returns the hint that was set.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the hint for the errno of the cause, or a general one. Only errors of classes System
    /// and Mount have it.
    fn usual_hint(&self) -> Option<&'static str> {
        if !matches!(self.class, Class::System | Class::Mount) {
            return None;
        }
        let errno = self.cause.as_ref().and_then(|cause| cause.errno);
        let known = USUAL_HINTS.iter().find(|(known, _)| errno == Some(*known));
        Some(known.map_or(
            "`spc doctor` checks the container; the host's kernel log may say more: dmesg",
            |(_, hint)| hint,
        ))
    }

    /// Returns the summary and the log lines, without the hint.
    pub fn all_lines(&self) -> Vec<String> {
        let log = self.log.iter().map(|line| format!("  {line}"));
        std::iter::once(self.summary()).chain(log).collect()
    }

    /// Returns the first line: `message: cause`.
    pub fn summary(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {}", self.message, cause.text),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary())?;
        for line in &self.log {
            write!(f, "\n  {line}")?;
        }
        match self.hint.as_deref().or_else(|| self.usual_hint()) {
            Some(hint) => write!(f, "\nhint: {}", place::fit(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Returns whether an error is a lack of descriptors or memory. Such an error says nothing about
/// the object of the call.
pub fn is_shortage(error: &std::io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|errno| shortages.contains(&errno))
}

/// Returns the text of an errno as strerror(3) has it, without Rust's `(os error N)`.
pub fn errno_text(errno: impl Into<std::io::Error>) -> String {
    let error: std::io::Error = errno.into();
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Returns the summary and the last log line in one line.
pub fn one_line(error: &Error) -> String {
    let mut lines = error.all_lines();
    // Lines of the shim explain details that do not belong into a summary.
    lines.retain(|line| !line.trim_start().starts_with("shim: "));
    match &lines[..] {
        [first, .., last] => format!("{first}: {}", last.trim()),
        _ => error.summary(),
    }
}

/// Replaces control characters other than tabs by octal escapes.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c.is_control() && c != '\t' {
            true => escape(&mut out, c.to_string().as_bytes()),
            false => out.push(c),
        }
    }
    out
}

/// Appends bytes as octal escapes.
fn escape(out: &mut String, bytes: &[u8]) {
    out.extend(bytes.iter().map(|b| format!("\\{b:03o}")));
}

/// Formats a path for people: control characters and the backslash become octal escapes, as in
/// proc_pid_mountinfo(5).
pub fn show(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                escape(&mut out, c.to_string().as_bytes());
            } else {
                out.push(c);
            }
        }
        escape(&mut out, chunk.invalid());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_helper_do_not_command_the_terminal() {
        let lines = vec!["\u{1b}]0;title\u{7}a\tb\u{9b}31m".to_owned()];
        let text = Error::mount("it failed").log(lines).to_string();
        assert!(
            text.contains("\n  \\033]0;title\\007a\tb\\302\\23331m"),
            "{text}"
        );
    }

    #[test]
    fn errno_selects_a_hint_unless_one_is_set() {
        let error = Error::system("cannot lock it")
            .because(std::io::Error::from_raw_os_error(libc::ENOSPC));
        let text = error.to_string();
        assert!(
            text.ends_with("\nhint: free space on that file system"),
            "{text}"
        );
        let better = error.hint("remove it").to_string();
        assert!(better.ends_with("\nhint: remove it"), "{better}");
        assert!(!Error::usage("no").to_string().contains("hint"));
    }
}
