//! Every parser, with fuzzed input.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::fuzz::{CANARY, Fuzz, targets};

use crate::support::with_lab;

/// Fuzz targets, built below the target directory.
fn built() -> Result<Fuzz> {
    Fuzz::build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(".."))
}

/// Runs each target for this long.
fn run_all(fuzz: &Fuzz, long: Duration) -> Result<()> {
    let (targets, begun) = (targets()?, Instant::now());
    ensure!(targets.len() >= 9, "{targets:?}");
    let mut all = 0;
    for target in targets {
        let run = fuzz.run(&target, long)?;
        eprintln!(
            "{target}: {} executions, {} features",
            run.executions, run.features
        );
        // A slow machine makes few executions, but not so few that nothing was tried.
        ensure!(run.executions > 100 && run.features > 100, "{run:?}");
        all += run.executions;
    }
    eprintln!("{all} executions in {:.0?}", begun.elapsed());
    Ok(())
}

#[test]
fn no_parser_falls_over() {
    with_lab(|_| {
        let fuzz = built()?;
        let found = fuzz.run(CANARY, Duration::from_secs(120));
        let found = found.err().context("the bug that is there was not found")?;
        ensure!(
            found.to_string().contains("the bug of the canary"),
            "{found}"
        );
        run_all(&fuzz, Duration::from_secs(5))
    });
}

#[test]
#[ignore = "long: five minutes for each parser"]
fn no_parser_falls_over_in_the_long_run() {
    with_lab(|_| run_all(&built()?, Duration::from_secs(300)));
}
