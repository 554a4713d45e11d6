//! Mutations of the product, to see which tests notice them: `scripts/test mutants [FILTER]`.

mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub use table::MUTATIONS;

/// A mistake in the product.
#[derive(Debug)]
pub struct Mutation {
    /// File, from the root of the checkout.
    file: &'static str,
    /// Text that occurs once in the file.
    old: &'static str,
    /// Text in its place.
    new: &'static str,
    /// Part of the names of the tests that have to fail.
    tests: &'static str,
    /// Whether these are root tests, not unit tests of the package that has the file.
    root: bool,
}

impl Mutation {
    /// Returns the mutated text of the file.
    fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(self.old).count();
        ensure!(count == 1, "{}: {count} times: {}", self.file, self.old);
        Ok(text.replacen(self.old, self.new, 1))
    }

    fn package(&self) -> &'static str {
        match self.file {
            _ if self.root => "spc-tests",
            file if file.starts_with("shim/config/") => "spc-shim-config",
            file if file.starts_with("shim/") => "spc-shim",
            _ => "spc",
        }
    }
}

/// Result of the tests of one package.
enum Outcome {
    Passed(String),
    Failed,
}

/// Copy of the checkout, with build files of its own.
struct Copy(PathBuf);

impl Copy {
    /// Copies the files that git knows and those that it does not ignore. Files that did not change
    /// stay as they are, and so do the build files.
    fn new(checkout: &Path, tree: &Path) -> Result<Self> {
        let list = [
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ];
        let listed = Command::new("git")
            .args(list)
            .current_dir(checkout)
            .output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            let (from, to) = (checkout.join(name), tree.join(name));
            let Ok(bytes) = fs::read(&from) else { continue };
            if fs::read(&to).is_ok_and(|current| current == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().context("no directory")?)?;
            fs::copy(&from, &to)?;
        }
        Ok(Self(tree.to_owned()))
    }

    /// Runs the tests of a package that have `filter` in their names.
    fn test(&self, package: &str, filter: &str) -> Result<Outcome> {
        let mut command = Command::new("cargo");
        command.args(["test", "--locked", "-p", package]);
        match package {
            "spc-tests" => command.args(["--test", "all"]),
            _ => command.arg("--lib"),
        };
        let output = command
            .arg(filter)
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", self.0.with_file_name("build"))
            .env("SPC_IMAGE_PROFILE", "quick")
            .env_remove("SPC_SHIM_SO")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(Outcome::Passed(text)),
            false if text.contains("test result: FAILED") => Ok(Outcome::Failed),
            false => bail!(
                "does not build: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
}

/// Applies the mutations that have `filter` in their file or tests, one at a time, in a copy of the
/// checkout below `target`. Prints each, and returns how many no test noticed.
///
/// # Errors
/// A mutation does not apply or build, or a test of it is missing or fails without it.
pub fn run(checkout: &Path, target: &Path, filter: &str) -> Result<usize> {
    let wanted =
        |mutation: &&Mutation| mutation.file.contains(filter) || mutation.tests.contains(filter);
    let mutations: Vec<&Mutation> = MUTATIONS.iter().filter(wanted).collect();
    let copy = Copy::new(checkout, &target.join("mutants/tree"))?;
    // The tests pass without a mutation.
    let tests: BTreeSet<_> = mutations.iter().map(|m| (m.package(), m.tests)).collect();
    for (package, tests) in tests {
        match copy.test(package, tests)? {
            Outcome::Passed(text) if text.contains(tests) => {}
            Outcome::Passed(_) => bail!("{package} has no test {tests}"),
            Outcome::Failed => bail!("{package}: {tests} fails without a mutation"),
        }
    }
    let mut survivors = 0;
    for mutation in mutations {
        let file = copy.0.join(mutation.file);
        let text = fs::read_to_string(&file)?;
        fs::write(&file, mutation.apply(&text)?)?;
        let outcome = copy.test(mutation.package(), mutation.tests);
        fs::write(&file, text)?;
        let outcome = outcome.with_context(|| format!("{}: {}", mutation.file, mutation.new))?;
        let word = match outcome {
            Outcome::Failed => "noticed ",
            Outcome::Passed(_) => "SURVIVED",
        };
        survivors += usize::from(matches!(outcome, Outcome::Passed(_)));
        println!("{word} {}: {}", mutation.file, mutation.old.trim());
    }
    println!("{survivors} survived");
    Ok(survivors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_applies() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut wrong = Vec::new();
        for mutation in MUTATIONS {
            let text = fs::read_to_string(checkout.join(mutation.file)).unwrap_or_default();
            wrong.extend(mutation.apply(&text).err().map(|error| error.to_string()));
            assert!(!mutation.tests.is_empty());
        }
        assert!(
            wrong.is_empty(),
            "tests/src/mutants/table.rs:\n{}",
            wrong.join("\n")
        );
        assert!(MUTATIONS.len() >= 40);
    }
}
