//! `lab bench`: measures every row of the table of aims in disposable hosts, and writes a table, a
//! JSON file and charts.

mod chart;
mod crowd;
mod figures;
mod fio;
mod mounts;
mod shim;
mod stage;
mod table;
mod volumes;
mod work;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use self::figures::{Curve, Failure, Line, Machine};
use self::stage::Stage;
use crate::{Lab, packages};

pub use self::figures::Figures;
pub use self::work::work;

/// Lines of the page between which the table is replaced.
const MARKS: [&str; 2] = [
    "<!-- made by scripts/bench, from figures.json -->\n",
    "<!-- end of what scripts/bench made -->\n",
];

/// Options of `lab bench`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rows to measure, by default all
    #[arg(value_parser = clap::value_parser!(u8).range(1..=11))]
    rows: Vec<u8>,
    /// Make few runs and small crowds, to try it out
    #[arg(long)]
    quick: bool,
    /// Write figures.json, table.md and the charts to this directory, instead of docs/performance
    #[arg(long)]
    output: Option<PathBuf>,
    /// Write table and charts of docs/performance again from its figures.json, and measure nothing
    #[arg(long, conflicts_with_all = ["rows", "quick", "output"])]
    render: bool,
}

/// Number of runs and size of crowds.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    quick: bool,
}

impl Scale {
    /// Returns the number of runs for work of milliseconds.
    fn runs(self, runs: usize) -> usize {
        if self.quick { runs.min(10) } else { runs }
    }

    /// Returns the number of runs for work of seconds.
    fn rounds(self, rounds: usize) -> usize {
        if self.quick { 1 } else { rounds }
    }

    /// Returns the size of a crowd.
    fn count(self, count: usize) -> usize {
        if self.quick { count / 20 } else { count }
    }

    fn of<T>(self, all: &'static [T], quick: &'static [T]) -> &'static [T] {
        if self.quick { quick } else { all }
    }
}

/// Figures measured so far.
#[derive(Debug)]
pub struct Report {
    cores: usize,
    lines: Vec<Line>,
    curves: Vec<Curve>,
    failed: Vec<Failure>,
}

impl Report {
    fn line(&mut self, line: Line) {
        eprintln!("bench: {}: {}", line.what, table::said(&line.ours));
        self.lines.push(line);
    }

    fn failed(&mut self, row: u8, reason: String) {
        eprintln!("bench: row {row} could not be measured: {reason}");
        self.failed.push(Failure { row, reason });
    }

    /// Measures rows. On failure, records the reason and continues with the next rows.
    fn part(&mut self, rows: &[u8], measure: impl FnOnce(&mut Self) -> Result<()>) {
        let Some(first) = rows.first() else { return };
        let begun = Instant::now();
        if let Err(error) = measure(self) {
            self.failed(*first, format!("{error:#}"));
        }
        eprintln!("bench: rows {rows:?} in {:.0?}", begun.elapsed());
    }
}

/// Measures these rows.
pub fn measure(lab: &Lab, rows: &[u8], quick: bool) -> Result<Figures> {
    let machine = Machine::this()?;
    let scale = Scale { quick };
    let mut report = Report {
        cores: machine.cores,
        lines: Vec::new(),
        curves: Vec::new(),
        failed: Vec::new(),
    };
    let of = |some: &[u8]| -> Vec<u8> {
        let wanted = |row: &u8| rows.is_empty() || rows.contains(row);
        some.iter().copied().filter(wanted).collect()
    };
    report.part(&of(&[1]), |report| shim::exec(lab, scale, report));
    report.part(&of(&[2]), shim::file);
    let on_a_host = of(&[3, 4, 5, 6, 7, 11]);
    report.part(&on_a_host, |report| {
        let stage = Stage::new(lab)?;
        let crossings = of(&[3, 4]);
        report.part(&crossings, |report| {
            shim::crossing(&stage, scale, &crossings, report)
        });
        report.part(&of(&[5]), |report| mounts::pair(&stage, scale, report));
        report.part(&of(&[6]), |report| {
            mounts::among_many(&stage, scale, report)
        });
        report.part(&of(&[7]), |report| crowd::at_once(&stage, scale, report));
        let own = of(&[6, 11]);
        report.part(&own, |report| {
            crowd::of_our_own(&stage, scale, &own, report)
        });
        Ok(())
    });
    let volumes = of(&[7, 8, 9, 10, 11]);
    report.part(&volumes, |report| {
        volumes::rows(lab, scale, &volumes, report)
    });
    let Report {
        mut lines,
        curves,
        failed,
        ..
    } = report;
    lines.sort_by_key(|line| line.row);
    Ok(Figures {
        machine,
        quick,
        lines,
        curves,
        failed,
    })
}

impl Figures {
    /// Reads a file like `figures.json`.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("bad figures: {}", file.display()))
    }

    /// Writes `figures.json`, the page with the table, and the charts to a directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(directory.join("figures.json"), json)?;
        let page = directory.join("README.md");
        if !page.exists() {
            fs::write(page, MARKS.concat())?;
        }
        render(directory)
    }

    /// Returns name and content of the page and the charts. `page` is the current text of the page.
    fn files(&self, page: &str, before: Option<&Self>) -> Result<Vec<(String, String)>> {
        let [begin, end] = MARKS;
        let (head, rest) = page.split_once(begin).context("the page has no table")?;
        let (_, tail) = rest.split_once(end).context("the table has no end")?;
        let table = self.markdown(before);
        let mut files = vec![(
            "README.md".to_owned(),
            format!("{head}{begin}\n{table}\n{end}{tail}"),
        )];
        for curve in &self.curves {
            files.push((format!("{}.svg", curve.name), chart::svg(curve)));
        }
        Ok(files)
    }
}

/// Returns the directory of the page in the checkout.
fn documents() -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(checkout.context("no checkout")?.join("docs/performance"))
}

/// Writes page and charts of a directory again, from its figures.
fn render(directory: &Path) -> Result<()> {
    for (name, text) in rendered(directory)? {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

fn rendered(directory: &Path) -> Result<Vec<(String, String)>> {
    let figures = Figures::read(&directory.join("figures.json"))?;
    let before = directory.join("before.json");
    let before = before
        .exists()
        .then(|| Figures::read(&before))
        .transpose()?;
    let page = fs::read_to_string(directory.join("README.md"))?;
    figures.files(&page, before.as_ref())
}

/// Runs the program.
pub fn main(options: &Options) -> Result<()> {
    if options.render {
        return render(&documents()?);
    }
    if options.rows.is_empty() || options.rows.contains(&10) {
        packages::bench()?;
    }
    let lab = Lab::start()?;
    let figures = measure(&lab, &options.rows, options.quick)?;
    drop(lab);
    println!("{}", figures.markdown(None));
    if let Some(directory) = &options.output {
        figures.write(directory)?;
    } else if options.rows.is_empty() && !options.quick {
        figures.write(&documents()?)?;
    }
    if figures.failed.is_empty() {
        return Ok(());
    }
    let rows = figures.failed.iter().map(|failure| failure.row.to_string());
    bail!(
        "not all could be measured: row {}",
        rows.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_its_figures() {
        let directory = documents().unwrap();
        for (name, text) in rendered(&directory).unwrap() {
            let there = fs::read_to_string(directory.join(&name)).unwrap_or_default();
            assert!(
                there == text,
                "{name} is not what figures.json says: scripts/bench --render"
            );
        }
        let figures = Figures::read(&directory.join("figures.json")).unwrap();
        for row in 1..=11 {
            let measured = figures.lines.iter().any(|line| line.row == row);
            let said = figures.failed.iter().any(|failure| failure.row == row);
            assert!(measured || said, "nothing is said of row {row}");
        }
        assert!(!figures.quick, "a quick run is not for the page");
    }
}
