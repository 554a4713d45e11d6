//! Programs that run on the machine itself, outside of every lab.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the `lab` binary: this program, or the one that cargo puts beside or above the test
/// program.
pub(crate) fn binary() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program")?;
    if this.file_name() == Some(OsStr::new("lab")) {
        return Ok(this);
    }
    let places = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|place| place.join("lab"));
    let found = places.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no program named lab near {}\nhint: cargo build -p spc-tests",
            this.display()
        )
    })
}

/// Runs a program of the machine. Its output goes to standard error.
pub(crate) fn run(program: impl AsRef<OsStr>, arguments: &[&OsStr]) -> Result<()> {
    let program = program.as_ref();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    ensure!(
        status.success(),
        "{} {}: {status}",
        program.display(),
        words.join(" ")
    );
    Ok(())
}

/// Runs a program of the machine with an input, and returns its output. An error has both streams.
pub(crate) fn filter(mut command: Command, input: &str) -> Result<String> {
    let name = command.get_program().display().to_string();
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        // A program that ends early closes the pipe.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })?;
    let (text, errors) = (String::from_utf8(output.stdout)?, output.stderr);
    let errors = String::from_utf8_lossy(&errors);
    ensure!(
        output.status.success(),
        "{name}: {}: {text}{errors}",
        output.status
    );
    Ok(text)
}

/// Returns the output of a program of the machine, without the newline at its end.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let words = arguments.join(" ");
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {words}: {errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Reads a line from a process that the lab has just started, or fails if the process failed.
pub(crate) fn expect_line(reader: &mut impl std::io::BufRead, what: &str) -> Result<String> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .with_context(|| format!("cannot read from {what}"))?;
    ensure!(!line.is_empty(), "{what} failed, see its message above");
    Ok(line.trim_end().to_owned())
}

/// Returns whether a path can stand in the options of an overlay without quoting.
pub(crate) fn is_plain(path: &Path) -> bool {
    !path.to_string_lossy().contains([',', ':', '\\'])
}
