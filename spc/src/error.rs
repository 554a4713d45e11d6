//! The one error type: what was tried, on what, what came back, and what to do about it.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What went wrong, in the classes that mount(8) has exit codes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong, or the caller may not make it.
    Usage,
    /// This container or host cannot do it: privilege, namespace, disk.
    System,
    /// Stopped by a signal.
    Interrupted,
    /// The mount or unmount itself failed.
    Mount,
    /// Some of several targets failed.
    Some,
}

impl Class {
    /// The exit code, as mount(8) "EXIT STATUS" gives it.
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

/// Why something failed, for those who count: few words, and always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request is wrong, or the caller may not make it.
    Usage,
    /// This container or host cannot do it.
    System,
    /// A signal stopped it.
    Interrupted,
    /// The limit was over.
    Timeout,
    /// The limit was over before the helper's turn came.
    Queue,
    /// The helper said no.
    Helper,
    /// What was mounted did not answer.
    NoAnswer,
    /// Success was reported, but nothing is mounted.
    NoProof,
    /// Something else is mounted there.
    Occupied,
    /// What is mounted there is dead.
    Dead,
    /// Somebody uses it.
    Busy,
    /// Another command is at work on it.
    Locked,
    /// Anything else.
    Failed,
}

impl Reason {
    /// The word for it.
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

/// An error with its context; printed as `what: cause`, then log lines, then `hint: …`.
#[derive(Debug)]
pub struct Error {
    class: Class,
    reason: Option<Reason>,
    what: String,
    cause: Option<Cause>,
    log: Vec<String>,
    hint: Option<String>,
}

/// Reason for an error: a text, or the error of a system call with its errno.
#[derive(Debug)]
pub struct Cause {
    text: String,
    errno: Option<i32>,
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

/// What to do about an errno, wherever it comes from.
const USUAL_HINTS: [(i32, &str); 10] = [
    (libc::ENOSPC, "make room on the file system that it is on"),
    (
        libc::EROFS,
        "the file system that it is on must be writable; dmesg says whether the kernel has made it read-only",
    ),
    (
        libc::EMFILE,
        "it has too many files open: raise the limit (ulimit -n), then try again",
    ),
    (
        libc::ENFILE,
        "the machine has too many files open: raise fs.file-max, then try again",
    ),
    (
        libc::ENOMEM,
        "the container or the machine has no memory left for it; try again when it has",
    ),
    (
        libc::EAGAIN,
        "there are too many processes, or there is no memory left; try again when there is",
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
    (
        libc::EBUSY,
        "somebody else uses it at this moment; try again",
    ),
];

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a class; `what` says what was tried, and on what.
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self {
            class,
            reason: None,
            what: what.into(),
            cause: None,
            log: Vec::new(),
            hint: None,
        }
    }

    /// Short for a [`Class::Usage`] error.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Class::Usage, what)
    }

    /// Short for a [`Class::System`] error.
    pub fn system(what: impl Into<String>) -> Self {
        Self::new(Class::System, what)
    }

    /// Short for a [`Class::Mount`] error.
    pub fn mount(what: impl Into<String>) -> Self {
        Self::new(Class::Mount, what)
    }

    /// Sets the cause. An errno also selects the hint, unless the error has one of its own.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do about it, unless the error says so already.
    #[must_use]
    pub fn hint_if_none(self, hint: &str) -> Self {
        if self.hint.is_some() {
            self
        } else {
            self.hint(hint)
        }
    }

    /// What else to do about it.
    #[must_use]
    pub fn hint_also(mut self, hint: &str) -> Self {
        self.hint = Some(match self.hint {
            Some(first) => format!("{first}; {hint}"),
            None => hint.to_owned(),
        });
        self
    }

    /// Lines that a helper or the kernel wrote about it.
    #[must_use]
    pub fn log(mut self, lines: Vec<String>) -> Self {
        self.log.extend(lines);
        self
    }

    /// The class, and with it the exit code.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Why, where that can be said more exactly than by the class.
    #[must_use]
    pub fn reason_is(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Why, in a word.
    pub fn reason(&self) -> Reason {
        self.reason.unwrap_or(match self.class {
            Class::Usage => Reason::Usage,
            Class::System => Reason::System,
            Class::Interrupted => Reason::Interrupted,
            Class::Mount | Class::Some => Reason::Failed,
        })
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// What to do about a failed system call that nobody knows more about.
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

    /// The first line and those of the log, without the hint.
    pub fn all_lines(&self) -> Vec<String> {
        let log = self.log.iter().map(|line| format!("  {line}"));
        std::iter::once(self.summary()).chain(log).collect()
    }

    /// The first line: what was tried and what came back.
    pub fn summary(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {}", self.what, cause.text),
            None => self.what.clone(),
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
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Whether it says nothing about what was looked at, but that this process or machine has too little of something.
pub fn is_shortage(error: &std::io::Error) -> bool {
    let short = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|error| short.contains(&error))
}

/// The text of an errno without Rust's `(os error N)`, as strerror(3) has it.
pub fn errno_text(errno: impl Into<std::io::Error>) -> String {
    let error: std::io::Error = errno.into();
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What was tried and what came back, with the last that the helper said.
pub fn in_a_line(error: &Error) -> String {
    let mut lines = error.all_lines();
    // These are for who looks closer.
    lines.retain(|line| !line.trim_start().starts_with("shim: "));
    match &lines[..] {
        [first, .., last] => format!("{first}: {}", last.trim()),
        _ => error.summary(),
    }
}

/// A path for people: control characters and the backslash as octal escapes, as mountinfo has them.
pub fn show(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                out.extend(c.to_string().bytes().map(|b| format!("\\{b:03o}")));
            } else {
                out.push(c);
            }
        }
        out.extend(chunk.invalid().iter().map(|b| format!("\\{b:03o}")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_that_nobody_knows_more_about_has_a_hint() {
        let error = Error::system("cannot lock it")
            .because(std::io::Error::from_raw_os_error(libc::ENOSPC));
        let text = error.to_string();
        assert!(
            text.ends_with("\nhint: make room on the file system that it is on"),
            "{text}"
        );
        let better = error.hint("remove it").to_string();
        assert!(better.ends_with("\nhint: remove it"), "{better}");
        assert!(!Error::usage("no").to_string().contains("hint"));
    }
}
