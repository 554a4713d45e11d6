//! Measured figures, as `figures.json` holds them.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs;

use crate::machine;

/// Figures of a single run of the benchmarks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Machine and software.
    pub machine: Machine,
    /// Whether the run was a quick one, with fewer runs and smaller crowds.
    pub quick: bool,
    /// Measured lines, in the order of the rows.
    pub lines: Vec<Line>,
    /// Curves of growth.
    pub curves: Vec<Curve>,
    /// Rows that could not be measured.
    pub failed: Vec<Failure>,
}

/// The machine, and the measured software.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// Number of processors.
    pub cores: usize,
    /// Memory in MiB.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Distribution.
    pub system: String,
    /// Date.
    pub day: String,
    /// Commit, with `-dirty` behind it when files were changed.
    pub commit: String,
    /// Settings from the environment that make the build differ from the shipped one.
    pub profile: Vec<String>,
}

/// A measured quantity, and the quantities it is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Row of the table of aims.
    pub row: u8,
    /// Name of the quantity.
    pub what: String,
    /// Value of spc.
    pub ours: Value,
    /// Values of other programs for the same work.
    pub peers: Vec<Peer>,
    /// Aim for the value.
    pub aim: Option<Aim>,
}

/// Another program for the same work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the peer.
    pub name: String,
    /// Measured value.
    pub value: Value,
}

/// A number with its spread, or a word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Median and quartiles.
    Number(Number),
    /// A word.
    Text(String),
}

/// Median and quartiles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// Unit: `ms`, `MiB`, …
    pub unit: String,
    /// Median.
    pub median: f64,
    /// Lower quartile.
    pub low: f64,
    /// Upper quartile.
    pub high: f64,
    /// Number of measurements.
    pub runs: usize,
}

/// Aim for a line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// The ratio to a peer is at most this.
    Within {
        /// Index of the peer.
        peer: usize,
        /// Limit of the ratio.
        times: f64,
    },
    /// The ratio to a peer is at least this.
    Reaches {
        /// Index of the peer.
        peer: usize,
        /// Limit of the ratio.
        times: f64,
    },
    /// The number is at most this.
    AtMost(f64),
    /// The number is this.
    Exactly(f64),
}

/// Growth of a quantity with another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    /// Name of the chart's file, without `.svg`.
    pub name: String,
    /// Title.
    pub title: String,
    /// Quantity and unit of the horizontal axis.
    pub across: String,
    /// Quantity and unit of the vertical axis.
    pub up: String,
    /// Series, a line each.
    pub series: Vec<Series>,
}

/// A line of a chart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points: across, median, quartiles.
    pub points: Vec<[f64; 4]>,
}

/// A row that could not be measured completely.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Number of the row.
    pub row: u8,
    /// Reason.
    pub reason: String,
}

impl Number {
    /// Returns median and quartiles.
    pub fn of(unit: &str, mut all: Vec<f64>) -> Result<Self> {
        ensure!(!all.is_empty(), "nothing was measured");
        all.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| rounded(all[(all.len() - 1) * part / 4]);
        Ok(Self {
            unit: unit.into(),
            median: at(2),
            low: at(1),
            high: at(3),
            runs: all.len(),
        })
    }

    /// Converts seconds to milliseconds.
    pub fn milliseconds(seconds: &[f64]) -> Result<Self> {
        Self::of("ms", seconds.iter().map(|time| time * 1e3).collect())
    }

    /// Makes a number without spread.
    pub fn one(unit: &str, number: f64) -> Self {
        Self {
            unit: unit.into(),
            median: rounded(number),
            low: rounded(number),
            high: rounded(number),
            runs: 1,
        }
    }

    /// Returns a point of a curve.
    pub fn at(&self, across: f64) -> [f64; 4] {
        [across, self.median, self.low, self.high]
    }
}

/// Rounds to the digits that are worth keeping.
fn rounded(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

impl Value {
    /// Returns the median of a number.
    pub fn median(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number.median),
            Self::Text(_) => None,
        }
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

impl Line {
    /// Makes a line without peers or aim.
    pub fn new(row: u8, what: impl Into<String>, ours: impl Into<Value>) -> Self {
        Self {
            row,
            what: what.into(),
            ours: ours.into(),
            peers: Vec::new(),
            aim: None,
        }
    }

    /// Adds a peer.
    pub fn peer(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.peers.push(Peer { name, value });
        self
    }

    /// Sets the aim.
    pub fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// Returns the index of the peer in the aim, by default the first.
    pub fn rival(&self) -> usize {
        match self.aim {
            Some(Aim::Within { peer, .. } | Aim::Reaches { peer, .. }) => peer,
            _ => 0,
        }
    }

    /// Returns the ratio to that peer.
    pub fn ratio(&self) -> Option<f64> {
        let peer = self.peers.get(self.rival())?;
        let (ours, theirs) = (self.ours.median()?, peer.value.median()?);
        (theirs > 0.0).then_some(ours / theirs)
    }

    /// Returns whether the aim is met, or `None` without an aim or a ratio.
    pub fn met(&self) -> Option<bool> {
        if matches!(self.ours, Value::Text(_)) {
            return self.aim.map(|_| false);
        }
        // Two digits, as printed.
        let ratio = self.ratio().map(|ratio| (ratio * 100.0).round() / 100.0);
        match self.aim? {
            Aim::Within { times, .. } => ratio.map(|ratio| ratio <= times),
            Aim::Reaches { times, .. } => ratio.map(|ratio| ratio >= times),
            Aim::AtMost(limit) => self.ours.median().map(|ours| ours <= limit),
            // All quartiles are exact, not the median alone.
            Aim::Exactly(number) => match &self.ours {
                Value::Number(ours) => Some(ours.low == number && ours.high == number),
                Value::Text(_) => None,
            },
        }
    }
}

impl Machine {
    /// Describes this machine.
    pub fn this() -> Result<Self> {
        let value = |text: &str, key: &str, separator: char| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            let (_, value) = line.split_once(separator)?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let memory = value(&fs::read_to_string("/proc/meminfo")?, "MemTotal", ':');
        let kilobytes = memory.and_then(|memory| memory.split(' ').next()?.parse::<u64>().ok());
        let system = fs::read_to_string("/etc/os-release")?;
        let output_of = |program: &str, words: &[&str]| machine::output(program, words);
        let git = ["-C", env!("CARGO_MANIFEST_DIR")];
        let commit = output_of(
            "git",
            &[&git[..], &["describe", "--always", "--dirty"]].concat(),
        )
        .unwrap_or_else(|_| "unknown".into());
        let profile = std::env::vars()
            .filter(|(name, _)| name.starts_with("CARGO_PROFILE_") || name == "SPC_IMAGE_PROFILE");
        Ok(Self {
            processor: value(&processors, "model name", ':').context("no processor")?,
            cores: std::thread::available_parallelism()?.get(),
            memory: kilobytes.context("no memory")? / 1024,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            system: value(&system, "PRETTY_NAME", '=').context("no name")?,
            day: output_of("date", &["-u", "+%F"])?,
            commit,
            profile: profile
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        })
    }
}
