//! Programs at work on mounts (`tests/programs/steady.c`): they read and write without pause, and every error is told.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Libc, Mount, program};
use serde_json::Value;

use crate::support::{Container, until};

/// Where the program is on a host, and what it tells of itself.
const PROGRAM: &str = "/opt/steady";
const STATES: &str = "/run/steady";

/// How long a single call may take while others work on the same machine. A call that hangs takes longer.
const LONGEST: u64 = 20_000;

/// A program that is at work on one mount.
pub struct Steady {
    /// The mount.
    pub target: String,
    /// As the mount table had it when the program began.
    pub mount: Mount,
    /// As `spc ls` had it.
    pub record: Value,
    pid: String,
    state: String,
}

impl Steady {
    /// Starts one on what is mounted on a target, in a directory of its own.
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

    /// It has done more than before, no call failed, and the mount is the one it was.
    pub fn goes_on<H: AnyHost>(&self, spc: &Container<H>) -> Result<()> {
        let before = self.rounds(&spc.host)?;
        until("the program goes on", || {
            Ok(self.rounds(&spc.host)? > before + 2)
        })
        .with_context(|| format!("{}: stands at round {before}", self.target))?;
        self.is_unharmed(spc)
    }

    /// Ends the program. It has never seen an error.
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
        let said = spc.host.read(&format!("{}.errors", self.state))?;
        ensure!(
            errors == 0 && said.is_empty(),
            "{}: {errors} errors in {rounds} rounds:\n{}",
            self.target,
            String::from_utf8_lossy(&said)
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

    /// Rounds, errors, and the milliseconds of the longest call.
    fn state(&self, host: &impl AnyHost) -> Result<[u64; 3]> {
        let text = String::from_utf8(host.read(&self.state)?)?;
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        match numbers.as_slice() {
            // It has not come so far.
            [] => Ok([0; 3]),
            [rounds, errors, longest] => Ok([*rounds, *errors, *longest]),
            _ => anyhow::bail!("{}: {text:?}", Path::new(&self.state).display()),
        }
    }
}
