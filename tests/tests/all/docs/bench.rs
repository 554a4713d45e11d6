//! `scripts/bench`: its measurements, and its report.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Figures, Lab};

use crate::support::with_lab;

/// Rows of the table that take seconds.
const ROWS: [u8; 4] = [1, 2, 5, 6];

fn measured(lab: &Lab) -> Result<()> {
    let figures = lab::measure(lab, &ROWS, true)?;
    ensure!(figures.failed.is_empty(), "{:?}", figures.failed);
    for row in ROWS {
        let lines: Vec<_> = figures
            .lines
            .iter()
            .filter(|line| line.row == row)
            .collect();
        ensure!(!lines.is_empty(), "row {row} has no line");
        for line in lines {
            let numbers = line.ours.median().is_none_or(|median| median >= 0.0);
            ensure!(numbers, "{line:?}");
            ensure!(
                line.aim.is_none() || line.met().is_some(),
                "no verdict on the aim: {line:?}"
            );
        }
    }
    // A ratio in this range shows that the right libraries were preloaded.
    let exec = figures.lines.first().context("no first line")?;
    ensure!(
        exec.ratio()
            .is_some_and(|ratio| (0.2..5.0).contains(&ratio)),
        "{exec:?}"
    );

    // The report shows the content of the file.
    let directory = std::env::temp_dir().join(format!("spc-bench-{}", std::process::id()));
    let written = shown(&figures, &directory);
    fs::remove_dir_all(&directory)?;
    written
}

fn shown(figures: &Figures, directory: &std::path::Path) -> Result<()> {
    figures.write(directory)?;
    let read = Figures::read(&directory.join("figures.json"))?;
    ensure!(read.lines == figures.lines, "the file has other lines");
    let page = fs::read_to_string(directory.join("README.md"))?;
    for line in &read.lines {
        let cells = format!("| {} | {} |", line.row, line.what);
        ensure!(page.contains(&cells), "not in the table: {cells}\n{page}");
    }
    ensure!(
        page.contains("A quick run"),
        "the page does not say that it was a quick run: {page}"
    );
    ensure!(!read.curves.is_empty(), "no curves");
    for curve in &read.curves {
        let chart = fs::read_to_string(directory.join(format!("{}.svg", curve.name)))?;
        let points: usize = curve.series.iter().map(|series| series.points.len()).sum();
        ensure!(
            chart.matches("<circle ").count() == points && chart.ends_with("</svg>\n"),
            "{points} points: {chart}"
        );
        ensure!(page.contains(&format!("({}.svg)", curve.name)), "{page}");
    }
    Ok(())
}

#[test]
fn the_benchmarks_report_what_they_measure() {
    with_lab(measured);
}
