//! The fuzz targets of `tests/fuzz`, built as cargo fuzz builds them, but with the stable compiler and without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What cargo fuzz gives the compiler where no sanitizer is asked for: the fuzzer sees which ways a run has taken, and
/// what it compared.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=16";

/// The target with a bug that has to be found.
pub const CANARY: &str = "canary";

/// The targets, built.
pub struct Fuzz {
    programs: PathBuf,
}

/// A run of a target that found nothing.
#[derive(Debug)]
pub struct Run {
    /// How often the target was executed.
    pub executions: u64,
    /// How many ways through the program were seen.
    pub features: u64,
}

fn room() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names of all targets that must have no bug.
///
/// # Errors
/// The directory cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(room().join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    names.retain(|name| name != CANARY);
    names.sort();
    Ok(names)
}

impl Fuzz {
    /// Builds them, below this directory.
    ///
    /// # Errors
    /// The compiler fails.
    pub fn build(below: &Path) -> Result<Self> {
        let said = Command::new("rustc").arg("-vV").output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let host = said.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc does not say for what it compiles")?;
        let below = below.join("fuzz");
        // With a target that is named, what runs while building is not instrumented.
        let built = Command::new("cargo")
            .args(["build", "--locked", "--release", "--target", host])
            .arg("--manifest-path")
            .arg(room().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&below)
            .env("RUSTFLAGS", FLAGS)
            .status()?;
        ensure!(built.success(), "the fuzz targets are not built: {built}");
        let programs = below.join(host).join("release");
        Ok(Self { programs })
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Runs one from its corpus on, for so long. What it comes upon is kept for the next run, beside the program.
    ///
    /// # Errors
    /// It found something, and where that input is.
    pub fn run(&self, target: &str, long: Duration) -> Result<Run> {
        let (new, findings) = (self.beside("corpus").join(target), self.beside("findings"));
        for dir in [&new, &findings] {
            fs::create_dir_all(dir)?;
        }
        let output = Command::new(self.programs.join(target))
            .arg(format!("-max_total_time={}", long.as_secs()))
            .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
            .args(["-seed=1", "-print_final_stats=1", "-rss_limit_mb=1024"])
            .args(["-max_len=2048", "-timeout=20", "-verbosity=1"])
            .arg(&new)
            .arg(room().join("corpus").join(target))
            // A finding is in the last lines, whatever who called us wants of backtraces.
            .env("RUST_BACKTRACE", "0")
            .output()
            .with_context(|| format!("cannot run {target}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let lines: Vec<_> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            bail!("{target} found something: {}\n{last}", output.status);
        }
        let number = |before: &str| {
            let words: Vec<&str> = said.split_whitespace().collect();
            let at = words.iter().rposition(|word| *word == before)?;
            words.get(at + 1)?.parse().ok()
        };
        Ok(Run {
            executions: number("stat::number_of_executed_units:").context("no count")?,
            features: number("ft:").context("no coverage")?,
        })
    }
}
