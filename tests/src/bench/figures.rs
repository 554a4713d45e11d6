//! What was measured, as it stands in `figures.json`.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs;

use crate::machine;

/// One run of the benchmarks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Where.
    pub machine: Machine,
    /// Whether it was a quick run: fewer runs, smaller crowds.
    pub quick: bool,
    /// What was measured, in the order of the rows.
    pub lines: Vec<Line>,
    /// How things grow.
    pub curves: Vec<Curve>,
    /// What could not be measured.
    pub failed: Vec<Failure>,
}

/// The machine, and the software that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub cores: usize,
    /// Memory in MiB.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// The day.
    pub day: String,
    /// The commit, with `-dirty` behind it when files were changed.
    pub commit: String,
    /// What the environment told cargo to build otherwise than it is shipped.
    pub profile: Vec<String>,
}

/// One thing that was measured, and what it is held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The row of the table of aims.
    pub row: u8,
    /// What it is.
    pub what: String,
    /// What was measured.
    pub ours: Value,
    /// The same by other means.
    pub peers: Vec<Peer>,
    /// What it should be.
    pub aim: Option<Aim>,
}

/// Another way to the same end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub value: Value,
}

/// A number with its spread, or something that is no number.
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
    /// `ms`, `MiB`, …
    pub unit: String,
    /// Half are not above it.
    pub median: f64,
    /// A quarter is not above it.
    pub low: f64,
    /// Three quarters are not above it.
    pub high: f64,
    /// How many there were.
    pub runs: usize,
}

/// What a line should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// The number divided by that of a peer is at most this.
    Within {
        /// Which peer.
        peer: usize,
        /// How much of it.
        times: f64,
    },
    /// The number divided by that of a peer is at least this.
    Reaches {
        /// Which peer.
        peer: usize,
        /// How much of it.
        times: f64,
    },
    /// The number is at most this.
    AtMost(f64),
    /// The number is this.
    Exactly(f64),
}

/// How something grows with something else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    /// The name of its chart's file, without `.svg`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What grows, and its unit.
    pub across: String,
    /// What is measured, and its unit.
    pub up: String,
    /// A line for each way.
    pub series: Vec<Series>,
}

/// One line of a chart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Where it goes: across, median, quartiles.
    pub points: Vec<[f64; 4]>,
}

/// A row that could not be measured, or not all of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The row.
    pub row: u8,
    /// Why.
    pub reason: String,
}

impl Number {
    /// Median and quartiles of these.
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

    /// Seconds as milliseconds.
    pub fn milliseconds(seconds: &[f64]) -> Result<Self> {
        Self::of("ms", seconds.iter().map(|time| time * 1e3).collect())
    }

    /// A number that does not vary.
    pub fn one(unit: &str, number: f64) -> Self {
        Self {
            unit: unit.into(),
            median: rounded(number),
            low: rounded(number),
            high: rounded(number),
            runs: 1,
        }
    }

    /// A point of a curve.
    pub fn at(&self, across: f64) -> [f64; 4] {
        [across, self.median, self.low, self.high]
    }
}

/// As many digits as are worth being kept.
fn rounded(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

impl Value {
    /// The median, if it is a number.
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
    /// Something without peers or aim.
    pub fn new(row: u8, what: impl Into<String>, ours: impl Into<Value>) -> Self {
        Self {
            row,
            what: what.into(),
            ours: ours.into(),
            peers: Vec::new(),
            aim: None,
        }
    }

    /// Something that it is held against.
    pub fn peer(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.peers.push(Peer { name, value });
        self
    }

    /// What it should be.
    pub fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// The peer that the aim is about, or the first.
    pub fn rival(&self) -> usize {
        match self.aim {
            Some(Aim::Within { peer, .. } | Aim::Reaches { peer, .. }) => peer,
            _ => 0,
        }
    }

    /// The number divided by that of the peer that it is held against.
    pub fn ratio(&self) -> Option<f64> {
        let peer = self.peers.get(self.rival())?;
        let (ours, theirs) = (self.ours.median()?, peer.value.median()?);
        (theirs > 0.0).then_some(ours / theirs)
    }

    /// Whether it is what it should be; none where nobody said what, or where it cannot be told.
    pub fn met(&self) -> Option<bool> {
        if matches!(self.ours, Value::Text(_)) {
            return self.aim.map(|_| false);
        }
        // As it is printed, with two digits.
        let ratio = self.ratio().map(|ratio| (ratio * 100.0).round() / 100.0);
        match self.aim? {
            Aim::Within { times, .. } => ratio.map(|ratio| ratio <= times),
            Aim::Reaches { times, .. } => ratio.map(|ratio| ratio >= times),
            Aim::AtMost(limit) => self.ours.median().map(|ours| ours <= limit),
            // In every run.
            Aim::Exactly(number) => match &self.ours {
                Value::Number(ours) => Some(ours.low == number && ours.high == number),
                Value::Text(_) => None,
            },
        }
    }
}

impl Machine {
    /// This one.
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
        let said = |program: &str, words: &[&str]| machine::output(program, words);
        let git = ["-C", env!("CARGO_MANIFEST_DIR")];
        let commit = said(
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
            day: said("date", &["-u", "+%F"])?,
            commit,
            profile: profile
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        })
    }
}
