//! `expandfs`: lets a mounted volume use the space that it was given on its server.

use std::path::Path;
use std::time::Instant;

use crate::error::{Error, Reason, Result, show};
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{self, Subprocess};
use crate::volume::expand::{LIMIT, grow};

/// Grows the volume on `dir` to at least `wanted` bytes, in a process of its own.
///
/// A system call on a dead disk can block forever, so the process that does it may be abandoned.
///
/// # Errors
/// The process fails, or does not reply within 80 s.
pub fn run(dir: &str, wanted: &str) -> Result<Reply> {
    let words = ["flexvolume", "--work", "grow", dir, wanted];
    let mut child = Subprocess::spawn_tied(&words, b"")?;
    let failed = || Error::mount(format!("cannot grow {}", show(Path::new(dir))));
    match child.line(CancelToken::at(Instant::now() + LIMIT))? {
        subprocess::Reply::Line(line) => {
            Reply::read(&line).ok_or_else(|| failed().because("its process printed no reply"))
        }
        subprocess::Reply::Eof => Err(failed().because("its process ended")),
        subprocess::Reply::Timeout => Err(failed()
            .because(format!("no answer: waited {} s", LIMIT.as_secs()))
            .reason_is(Reason::NoAnswer)
            .hint("check its server; `spc ls` shows the state of the mount")),
    }
}

/// Grows the volume on `dir` to at least `wanted` bytes; the child side of [`run`].
///
/// # Errors
/// The volume is smaller, and cannot be grown.
pub fn child(dir: &str, wanted: &str) -> Result<Reply> {
    let wanted = wanted.parse().map_err(|_| Error::usage("bad size"))?;
    grow(Path::new(dir), wanted).map(Reply::size)
}
