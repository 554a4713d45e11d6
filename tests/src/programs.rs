//! Small C programs for tests, compiled on first use.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Key, cached};
use crate::machine;

/// Headers that programs share.
const HEADERS: [&[u8]; 1] = [include_bytes!("../programs/fuse_server.h")];

/// C library of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    /// glibc, with gcc.
    Gnu,
    /// musl, with musl-gcc.
    Musl,
}

/// Returns the program compiled from `tests/programs/NAME.c` with these compiler arguments.
pub fn program(name: &str, libc: Libc, arguments: &[&str]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(name)
        .with_extension("c");
    let text = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let compiler = match libc {
        Libc::Gnu => "/usr/bin/gcc",
        Libc::Musl => "/usr/bin/musl-gcc",
    };
    let command = [&[compiler, "-O2", "-Wall", "-Werror"], arguments].concat();
    let mut key = Key::new(&command.join(" "));
    key.add(&text);
    for header in HEADERS {
        key.add(header);
    }
    let kind = format!("program-{name}-{libc:?}{}", arguments.concat());
    cached(&kind, key, |path| {
        let mut words: Vec<&OsStr> = command[1..].iter().map(OsStr::new).collect();
        words.extend([OsStr::new("-o"), path.as_os_str(), source.as_os_str()]);
        machine::run(compiler, &words)
    })
}

/// Builds a library of this workspace with the release profile, and returns its path.
pub fn library(package: &str, file: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["build", "--quiet", "--locked", "--release", "-p", package];
    machine::run(cargo, &words.map(OsStr::new))?;
    let lab = machine::binary()?;
    let target = lab.ancestors().nth(2).context("no target directory")?;
    Ok(target.join("release").join(file))
}
