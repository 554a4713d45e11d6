//! The fuzz targets of `tests/fuzz`, built with the flags of cargo fuzz, but with the stable
//! compiler and without cargo fuzz.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Flags of cargo fuzz without a sanitizer: they show the fuzzer the branches that a run took and
/// the values it compared.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=16";

/// Target with a planted bug, which the fuzzer has to find.
pub const CANARY: &str = "canary";

/// Built targets.
pub struct Fuzz {
    programs: PathBuf,
}

/// Result of a run without a finding.
#[derive(Debug)]
pub struct Run {
    /// Number of executions of the target.
    pub executions: u64,
    /// Number of features (branches and compared values) that the fuzzer saw.
    pub features: u64,
}

/// Returns the directory of the fuzz crate.
fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Returns the names of all targets except the canary.
///
/// # Errors
/// Fails if the directory cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(fuzz_dir().join("fuzz_targets"))? {
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
    /// Builds all targets below this directory.
    ///
    /// # Errors
    /// Fails if the compiler fails.
    pub fn build(below: &Path) -> Result<Self> {
        let version = Command::new("rustc").arg("-vV").output()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc -vV does not name the host")?;
        let below = below.canonicalize()?.join("fuzz");
        // With an explicit `--target`, build scripts and macros are not instrumented.
        let built = Command::new("cargo")
            .args(["build", "--locked", "--release", "--target", host])
            .arg("--manifest-path")
            .arg(fuzz_dir().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&below)
            .env("RUSTFLAGS", FLAGS)
            .status()?;
        ensure!(built.success(), "the fuzz targets are not built: {built}");
        let programs = below.join(host).join("release");
        Ok(Self { programs })
    }

    /// Returns a directory beside the programs.
    fn output_dir(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Runs a target from its corpus for a time. New inputs stay beside the program for the next
    /// run.
    ///
    /// # Errors
    /// Fails if the fuzzer finds a bug, and names the file with the input.
    pub fn run(&self, target: &str, long: Duration) -> Result<Run> {
        let (new, findings) = (
            self.output_dir("corpus").join(target),
            self.output_dir("findings"),
        );
        for dir in [&new, &findings] {
            fs::create_dir_all(dir)?;
        }
        let output = Command::new(self.programs.join(target))
            .arg(format!("-max_total_time={}", long.as_secs()))
            .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
            .args(["-seed=1", "-print_final_stats=1", "-rss_limit_mb=1024"])
            .args(["-max_len=2048", "-timeout=20", "-verbosity=1"])
            .arg(&new)
            .arg(fuzz_dir().join("corpus").join(target))
            // The finding has to be in the last lines, whatever the caller's backtrace setting.
            .env("RUST_BACKTRACE", "0")
            .output()
            .with_context(|| format!("cannot run {target}"))?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            bail!("{target} found something: {}\n{last}", output.status);
        }
        let number = |before: &str| {
            let words: Vec<&str> = log.split_whitespace().collect();
            let at = words.iter().rposition(|word| *word == before)?;
            words.get(at + 1)?.parse().ok()
        };
        Ok(Run {
            executions: number("stat::number_of_executed_units:").context("no count")?,
            features: number("ft:").context("no coverage")?,
        })
    }
}
