//! Time of a test run by test and by step. Tests and slow steps of the lab append lines to the file
//! `SPC_TEST_TIMES`, and `lab times FILE` prints two tables.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of tests in the table of the slowest.
const SLOWEST: usize = 15;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum LineKind {
    /// A test, from its first use of the lab to its end.
    Test,
    /// A step of the lab, such as a boot.
    Step,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    what: LineKind,
    name: String,
    wall: Duration,
    /// CPU time of the processes of its own hosts and virtual machines.
    cpu: Duration,
}

/// The test that a thread runs.
struct Test {
    name: String,
    started: Instant,
    cpu: Cell<Duration>,
}

impl Drop for Test {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        write(LineKind::Test, name, self.started.elapsed(), self.cpu.get());
    }
}

thread_local! {
    static TEST: OnceCell<Test> = const { OnceCell::new() };
}

/// Starts the clock of the test on this thread. The end of the thread stops it.
pub(crate) fn begin_test() {
    let thread = std::thread::current();
    // The main thread has no test of its own.
    let Some(name) = thread.name().filter(|name| *name != "main") else {
        return;
    };
    TEST.with(|test| {
        test.get_or_init(|| Test {
            name: name.to_owned(),
            started: Instant::now(),
            cpu: Cell::default(),
        });
    });
}

/// Adds CPU time to the test on this thread, if there is one.
pub(crate) fn add_cpu(cpu: Duration) {
    // Fails at the end of the thread.
    let _ = TEST.try_with(|test| {
        if let Some(test) = test.get() {
            test.cpu.set(test.cpu.get() + cpu);
        }
    });
}

/// Records time and CPU time of a step of the lab.
pub(crate) fn note(name: impl Into<String>, wall: Duration, cpu: Duration) {
    write(LineKind::Step, name.into(), wall, cpu);
}

/// Appends a line. A failure is ignored, because a test must not fail over times.
fn write(what: LineKind, name: String, wall: Duration, cpu: Duration) {
    let Some(path) = std::env::var_os("SPC_TEST_TIMES") else {
        return;
    };
    let line = Line {
        what,
        name,
        wall,
        cpu,
    };
    if let Ok(mut text) = serde_json::to_string(&line) {
        text.push('\n');
        let file = File::options().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }
}

/// `lab times FILE`: prints the slowest tests, and the sums of the lab's steps.
pub fn print(path: &Path) -> Result<()> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(serde_json::from_str);
    let lines = lines.collect::<Result<_, _>>().context("bad times")?;
    print!("{}", tables(lines));
    Ok(())
}

fn tables(lines: Vec<Line>) -> String {
    let (mut tests, steps): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .partition(|line| line.what == LineKind::Test);
    let mut text = String::new();
    let mut row = |wall: Duration, cpu: Duration, name: &str| {
        let (wall, cpu) = (wall.as_secs_f64(), cpu.as_secs_f64());
        let _ = writeln!(text, "{wall:8.1} {cpu:8.1}  {name}");
    };
    let wall = tests.iter().map(|line| line.wall).sum();
    let cpu = tests.iter().map(|line| line.cpu).sum();
    row(wall, cpu, &format!("{} tests together", tests.len()));
    tests.sort_by_key(|line| std::cmp::Reverse(line.wall));
    for test in tests.iter().take(SLOWEST) {
        row(test.wall, test.cpu, &test.name);
    }
    let mut sums: BTreeMap<String, (Duration, Duration, u32)> = BTreeMap::new();
    for step in steps {
        let (wall, cpu, count) = sums.entry(step.name).or_default();
        *wall += step.wall;
        *cpu += step.cpu;
        *count += 1;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (wall, ..))| std::cmp::Reverse(*wall));
    for (name, (wall, cpu, count)) in sums {
        row(wall, cpu, &format!("{count} × {name}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_tests_come_first_and_steps_are_summed() {
        let line = |what, name: &str, wall, cpu| Line {
            what,
            name: name.into(),
            wall: Duration::from_millis(wall),
            cpu: Duration::from_millis(cpu),
        };
        let text = tables(vec![
            line(LineKind::Test, "quick", 1000, 100),
            line(LineKind::Step, "host", 250, 200),
            line(LineKind::Test, "slow", 2000, 100),
            line(LineKind::Step, "host", 250, 200),
        ]);
        let expected = [
            "     3.0      0.2  2 tests together",
            "     2.0      0.1  slow",
            "     1.0      0.1  quick",
            "     0.5      0.4  2 × host",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
