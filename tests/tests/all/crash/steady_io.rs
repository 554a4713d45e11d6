//! Programs that read and write on mounts all the time (`tests/programs/steady.c`), and report
//! every error.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Libc, Mount, program};
use serde_json::Value;

use crate::support::{Container, until};

/// Paths of the program and of its state file on a host.
const PROGRAM: &str = "/opt/steady";
const STATES: &str = "/run/steady";

/// Longest time that a single call may take while other tests use the machine. A call that hangs
/// takes longer.
const LONGEST: u64 = 20_000;

/// A program that uses one mount.
pub struct Steady {
    /// The target.
    pub target: String,
    /// Mount table entry when the program started.
    pub mount: Mount,
    /// Record in `spc ls` at that time.
    pub record: Value,
    pid: String,
    state: String,
}

impl Steady {
    /// Starts a program on the mount of a target, in a directory of its own.
    pub fn start<H: AnyHost>(spc: &Container<H>, target: &str) -> Result<Self> {
        let host = &spc.host;
        if !host.run(&["test", "-e", PROGRAM])?.success() {
            let file = program("steady", Libc::Gnu, &["-static"])?;
            host.write(PROGRAM, &std::fs::read(file)?)?;
            host.run(&["chmod", "755", PROGRAM])?.ok()?;
        }
        let mut on = spc.on(target)?;
        let mount = on.pop().context("nothing is mounted")?;
        ensure!(on.is_empty(), "more than one mount on {target}: {on:?}");
        let name = target.replace('/', "-");
        // Hosts and mounts may share a server.
        let directory = format!("{target}/{}{name}", host.address());
        let state = format!("{STATES}/{name}");
        let script =
            r#"mkdir -p "$1" "${2%/*}" && { setsid "$0" "$1" "$2" >"$2.log" 2>&1 & } && echo $!"#;
        let start = ["sh", "-c", script, PROGRAM, &directory, &state];
        let pid = host.run(&start)?.ok()?.text();
        let steady = Self {
            target: target.to_owned(),
            record: spc.record(target)?,
            mount,
            pid,
            state,
        };
        steady.goes_on(spc)?;
        Ok(steady)
    }

    /// Checks that the program has made progress, that no call failed, and that the mount is the
    /// same.
    pub fn goes_on<H: AnyHost>(&self, spc: &Container<H>) -> Result<()> {
        let before = self.rounds(&spc.host)?;
        until("the program makes progress", || {
            Ok(self.rounds(&spc.host)? > before + 2)
        })
        .with_context(|| format!("{}: no progress since round {before}", self.target))?;
        self.is_unharmed(spc)
    }

    /// Ends the program, and checks that it never saw an error.
    pub fn end<H: AnyHost>(self, spc: &Container<H>) -> Result<()> {
        let host = &spc.host;
        host.sh(&format!("kill {}", self.pid))?.ok()?;
        let proc = format!("/proc/{}", self.pid);
        until("the program ends", || {
            Ok(!host.run(&["test", "-e", &proc])?.success())
        })?;
        self.is_unharmed(spc)?;
        let [rounds, _, longest] = self.state(host)?;
        eprintln!(
            "{}: {rounds} rounds, the longest call {longest} ms",
            self.target
        );
        Ok(())
    }

    fn is_unharmed<H: AnyHost>(&self, spc: &Container<H>) -> Result<()> {
        let [rounds, errors, longest] = self.state(&spc.host)?;
        let logged = spc.host.read(&format!("{}.errors", self.state))?;
        ensure!(
            errors == 0 && logged.is_empty(),
            "{}: {errors} errors in {rounds} rounds:\n{}",
            self.target,
            String::from_utf8_lossy(&logged)
        );
        ensure!(
            longest < LONGEST,
            "{}: a call took {longest} ms",
            self.target
        );
        let on = spc.on(&self.target)?;
        ensure!(
            on == [self.mount.clone()],
            "{}: {:?} became {on:?}",
            self.target,
            self.mount
        );
        Ok(())
    }

    fn rounds(&self, host: &impl AnyHost) -> Result<u64> {
        Ok(self.state(host)?[0])
    }

    /// Rounds, errors, and the duration of the longest call in milliseconds.
    fn state(&self, host: &impl AnyHost) -> Result<[u64; 3]> {
        let text = String::from_utf8(host.read(&self.state)?)?;
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        match numbers.as_slice() {
            // The program has not started its loop.
            [] => Ok([0; 3]),
            [rounds, errors, longest] => Ok([*rounds, *errors, *longest]),
            _ => anyhow::bail!("{}: {text:?}", Path::new(&self.state).display()),
        }
    }
}
