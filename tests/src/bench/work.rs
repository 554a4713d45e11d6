//! `lab work`: runs and times commands in the namespaces of a process, so that entering them is not
//! timed.

use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, ftruncate, memfd_create};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::enter::{Enter, go};
use crate::exec::Run;
use crate::host::Host;

/// A program and its arguments.
pub type Argv = Vec<String>;

/// A measured command with its preparation and its clean-up. A run compares several sides.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Side {
    /// Commands before the measurement, not timed.
    pub before: Vec<Argv>,
    /// Timed commands, one after the other.
    pub timed: Vec<Argv>,
    /// Commands after the measurement, not timed.
    pub after: Vec<Argv>,
}

impl Side {
    /// Makes a side of command lines.
    pub fn timed(commands: &[&str]) -> Self {
        Self {
            timed: commands.iter().map(|command| argv(command)).collect(),
            ..Self::default()
        }
    }

    /// Adds a command after the measurement, not timed.
    pub fn after(mut self, command: &str) -> Self {
        self.after.push(argv(command));
        self
    }

    /// Adds a command before the measurement, not timed.
    pub fn before(mut self, command: &str) -> Self {
        self.before.push(argv(command));
        self
    }
}

/// Splits a command line at spaces.
pub fn argv(command: &str) -> Argv {
    command.split_whitespace().map(str::to_owned).collect()
}

/// Work that `lab work` reads from standard input.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Run each side this many times, alternating.
    Turns { runs: usize, sides: Vec<Side> },
    /// Run these commands, at most `at_once` at a time.
    Crowd { commands: Vec<Argv>, at_once: usize },
    /// Mount a tmpfs on new directories.
    Fill {
        directory: PathBuf,
        from: usize,
        to: usize,
    },
    /// Unmount those directories.
    Clear {
        directory: PathBuf,
        from: usize,
        to: usize,
    },
}

/// Result of many commands at once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Crowd {
    /// Time from the first start to the last end.
    pub time: Duration,
    /// Number of commands that failed.
    pub failed: usize,
    /// Output of the commands, if any failed.
    pub says: String,
}

impl Host<'_> {
    /// Runs each side this many times, alternating, in the namespaces of a process, given by its
    /// number on the machine. Returns the times of each side.
    pub(crate) fn turns(&self, pid: i32, runs: usize, sides: &[Side]) -> Result<Vec<Vec<f64>>> {
        let sides = sides.to_vec();
        self.work(pid, &Order::Turns { runs, sides })
    }

    /// Runs commands in the namespaces of a process, at most `at_once` at a time.
    pub(crate) fn crowd(&self, pid: i32, commands: Vec<Argv>, at_once: usize) -> Result<Crowd> {
        self.work(pid, &Order::Crowd { commands, at_once })
    }

    /// Mounts a tmpfs on `DIRECTORY/FROM` to `DIRECTORY/TO`, without the last.
    pub(crate) fn fill(&self, directory: &str, from: usize, to: usize) -> Result<()> {
        let directory = directory.into();
        let order = Order::Fill {
            directory,
            from,
            to,
        };
        self.work(self.pid(), &order)
    }

    /// Unmounts all mounts on these directories.
    pub(crate) fn clear(&self, directory: &str, from: usize, to: usize) -> Result<()> {
        let directory = directory.into();
        let order = Order::Clear {
            directory,
            from,
            to,
        };
        self.work(self.pid(), &order)
    }

    fn work<T: for<'de> Deserialize<'de>>(&self, pid: i32, order: &Order) -> Result<T> {
        let task = Run::task(
            &["work"],
            &self.name(),
            pid,
            self.next_cgroup()?,
            &["order"],
        )?;
        let task = task.input(&serde_json::to_vec(order)?)?;
        let output = task.limit(Duration::from_secs(600)).run()?.ok()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("bad answer: {output}"))
    }
}

/// Reads an order from standard input, and executes it.
pub fn work(arguments: &Enter) -> Result<()> {
    let order: Order = serde_json::from_reader(std::io::stdin()).context("bad order")?;
    go(arguments)?;
    let answer = match order {
        Order::Turns { runs, sides } => serde_json::to_string(&turns(runs, &sides)?)?,
        Order::Crowd { commands, at_once } => serde_json::to_string(&crowd(&commands, at_once)?)?,
        Order::Fill {
            directory,
            from,
            to,
        } => {
            for number in from..to {
                let target = directory.join(number.to_string());
                std::fs::create_dir_all(&target)?;
                mount("fill", &target, "tmpfs", MountFlags::empty(), None)
                    .with_context(|| format!("cannot mount on {}", target.display()))?;
            }
            "null".into()
        }
        Order::Clear {
            directory,
            from,
            to,
        } => {
            for number in from..to {
                let target = directory.join(number.to_string());
                unmount(&target, UnmountFlags::empty())
                    .with_context(|| format!("cannot unmount {}", target.display()))?;
            }
            "null".into()
        }
    };
    println!("{answer}");
    Ok(())
}

/// Returns the seconds of each run of each side. The first side changes with each round, so that
/// the order is fair.
fn turns(runs: usize, sides: &[Side]) -> Result<Vec<Vec<f64>>> {
    let output = CapturedOutput::new()?;
    let mut times = vec![Vec::with_capacity(runs); sides.len()];
    for run in 0..runs {
        for offset in 0..sides.len() {
            let number = (run + offset) % sides.len();
            let side = &sides[number];
            side.before.iter().try_for_each(|words| output.run(words))?;
            let begun = Instant::now();
            side.timed.iter().try_for_each(|words| output.run(words))?;
            times[number].push(begun.elapsed().as_secs_f64());
            side.after.iter().try_for_each(|words| output.run(words))?;
        }
    }
    Ok(times)
}

fn crowd(commands: &[Argv], at_once: usize) -> Result<Crowd> {
    let output = CapturedOutput::new()?;
    let begun = Instant::now();
    let (mut running, mut failed) = (0, 0);
    let mut wait = |running: &mut usize| -> Result<()> {
        if !matches!(waitpid(None, None)?, WaitStatus::Exited(_, 0)) {
            failed += 1;
        }
        *running -= 1;
        Ok(())
    };
    for words in commands {
        if running == at_once {
            wait(&mut running)?;
        }
        output.start(words)?;
        running += 1;
    }
    while running > 0 {
        wait(&mut running)?;
    }
    Ok(Crowd {
        time: begun.elapsed(),
        failed,
        says: if failed > 0 {
            output.text()?
        } else {
            String::new()
        },
    })
}

/// Output of commands, in a file in memory.
struct CapturedOutput(File);

impl CapturedOutput {
    fn new() -> Result<Self> {
        let file = memfd_create("said", MemfdFlags::CLOEXEC)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
        Ok(Self(file.into()))
    }

    fn start(&self, words: &Argv) -> Result<Child> {
        let (program, rest) = words.split_first().context("no command")?;
        let child = Command::new(program)
            .args(rest)
            .stdin(Stdio::null())
            .stdout(self.0.try_clone()?)
            .stderr(self.0.try_clone()?)
            .spawn();
        child.with_context(|| format!("cannot start {program}"))
    }

    fn run(&self, words: &Argv) -> Result<()> {
        let status = self.start(words)?.wait()?;
        if !status.success() {
            bail!("{}: {status}\n{}", words.join(" "), self.text()?);
        }
        ftruncate(&self.0, 0)?;
        Ok(())
    }

    /// Returns the end of the output.
    fn text(&self) -> Result<String> {
        let length = self.0.metadata()?.len();
        let kept = length.min(4000);
        let mut bytes = vec![0; usize::try_from(kept)?];
        self.0.read_exact_at(&mut bytes, length - kept)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
