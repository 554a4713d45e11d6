//! A command whose system calls fail, are delayed, or kill their process. Afterwards there must be
//! no success without proof, nothing orphaned, and the next attempt must work.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lab::{Fault, Mount, Status, Stepped};

use crate::crash::fault_choice::{Extent, acts, calls, fault};
use crate::crash::fixture::{Case, Scene};
use crate::crash::leak_check::{Remains, daemons, daemons_have};
use crate::support::random::Random;
use crate::support::{Census, until};

/// The command that gets the faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Mount,
    Unmount,
    /// Repair of a mount whose daemon was killed.
    Repair,
}

/// Exit code of `spc repair` when there was nothing to repair.
const NOTHING: i32 = 3;

/// Results of all faults in one command.
#[derive(Default)]
struct Tally {
    tried: usize,
    /// Faults that took place: a command need not make the same calls each time.
    happened: usize,
    done: usize,
    refused: usize,
    died: usize,
    /// Leftovers for the next command to clear, by the system call that failed.
    left: BTreeMap<String, usize>,
    bad: Vec<String>,
}

/// A command of a case, and the states before it and after a run without faults.
pub struct Trial<'a> {
    scene: &'a Scene<'a>,
    case: &'a Case<'a>,
    what: What,
    command: Vec<&'a str>,
    umount: Vec<&'a str>,
    clean: Remains,
    /// Open files of the daemons.
    open: Vec<Vec<String>>,
    /// System calls of the command.
    steps: Vec<String>,
    tally: Tally,
    started: Instant,
}

impl<'a> Trial<'a> {
    /// Runs the command without a fault.
    pub fn begin(scene: &'a Scene<'a>, case: &'a Case<'a>, what: What) -> Result<Self> {
        let umount = vec!["spc", "umount", case.target];
        let command = match what {
            What::Mount => case.mount.clone(),
            What::Unmount => umount.clone(),
            What::Repair => vec!["spc", "repair", case.target],
        };
        let mut trial = Self {
            scene,
            case,
            what,
            command,
            umount,
            clean: Remains::default(),
            open: Vec::new(),
            steps: Vec::new(),
            tally: Tally::default(),
            started: Instant::now(),
        };
        // Files that are created once exist from then on.
        trial.mount_and_unmount()?;
        trial.clean = Remains::new(scene);
        trial.prepare()?;
        let traced = trial.trace(&[])?;
        traced.output.ok()?;
        trial.steps = traced.steps;
        if what != What::Unmount {
            scene.is_mounted(case)?;
            trial.open = daemons(scene)?;
            scene.run(&trial.umount)?.ok()?;
        }
        trial.is_clean()?;
        Ok(trial)
    }

    /// Prepares the state that the command starts from.
    fn prepare(&self) -> Result<()> {
        if self.what != What::Mount {
            self.scene.run(&self.case.mount)?.ok()?;
        }
        if self.what == What::Repair {
            self.scene.kill_daemons()?;
            until("the daemon has ended", || {
                Ok(self.scene.spc.census(self.scene.first)?.marked.is_empty())
            })?;
        }
        Ok(())
    }

    /// Whether to trace children too: a helper is a separate process, which gets faults as well.
    fn family(&self) -> bool {
        self.what != What::Unmount && self.case.redirects > 0
    }

    fn trace(&self, faults: &[Fault]) -> Result<Stepped> {
        let host = &self.scene.spc.host;
        host.trace(self.scene.first, &self.command, faults, self.family())
    }

    fn is_clean(&self) -> Result<()> {
        self.scene.is_clean()?;
        self.clean.are_left(self.scene)
    }

    fn mount_and_unmount(&self) -> Result<()> {
        self.scene.run(&self.case.mount)?.ok()?;
        self.scene.is_mounted(self.case)?;
        self.scene.run(&self.umount)?.ok()?;
        self.scene.is_clean()
    }

    /// Tries each system call, with one fault at a time.
    pub fn each(mut self, extent: Extent) -> Result<()> {
        let steps = std::mem::take(&mut self.steps);
        for (call, at) in calls(&steps) {
            for act in acts(call, extent) {
                let call = call.to_owned();
                self.with(&[Fault { call, at, act }], false)?;
            }
        }
        self.say("one fault")
    }

    /// Tries random pairs: a fault, and another one in the system calls that follow it.
    pub fn pairs(mut self, pairs: usize) -> Result<()> {
        let (steps, mut random) = (std::mem::take(&mut self.steps), Random(1));
        for _ in 0..pairs {
            let first = fault(&calls(&steps), &mut random, false).context("no system call")?;
            let stepped = self.with(std::slice::from_ref(&first), true)?;
            let (Some(from), true) = (stepped.faults.first(), stepped.killed) else {
                continue;
            };
            let all = calls(&stepped.steps);
            // No call follows if the fault was in the last one, or killed the process.
            if let Some(second) = fault(&all[*from..], &mut random, true) {
                self.with(&[first, second], false)?;
            }
        }
        self.say("two faults")
    }

    /// Runs the command with these faults, and judges the outcome.
    fn with(&mut self, faults: &[Fault], trace: bool) -> Result<Stepped> {
        self.prepare()?;
        let host = &self.scene.spc.host;
        let stepped = match trace {
            true => self.trace(faults)?,
            false => host.fault(self.scene.first, &self.command, faults, self.family())?,
        };
        let (status, stderr) = (stepped.output.status, stepped.output.error_text());
        let here = || format!("{faults:?}: {status:?}\n{stderr}");
        let call = &faults[faults.len() - 1].call;
        let judged = match self.scene.serving {
            true => self.serve_finishes(&stepped),
            false => self.judge(&stepped, call),
        };
        if let Err(error) = judged {
            self.tally.is_bad(format!("{error:?}\n{}", here()));
        }
        if let Err(error) = self.next_try() {
            self.tally.is_bad(format!("{error:?}\n{}", here()));
            self.is_clean().with_context(here)?;
        }
        self.tally.tried += 1;
        self.tally.happened += usize::from(stepped.killed);
        if self.tally.tried.is_multiple_of(100) {
            eprintln!("{}: {} tried", self.case.title, self.tally.tried);
        }
        Ok(stepped)
    }

    fn judge(&mut self, stepped: &Stepped, call: &str) -> Result<()> {
        match (stepped.output.status, self.what) {
            (Status::Code(0), What::Unmount) => {
                self.tally.done += 1;
                return self.is_clean();
            }
            (Status::Code(0), _) => {
                self.tally.done += 1;
                return self.is_made();
            }
            (Status::Code(NOTHING), What::Repair) => self.tally.refused += 1,
            (Status::Code(1 | 2 | 32), _) => {
                self.tally.refused += 1;
                self.is_an_error(stepped)?;
            }
            // A Rust program without memory aborts like this, as if it were killed.
            (Status::Signal(6 | 9), _) => self.tally.died += 1,
            (status, _) => bail!("{status:?}"),
        }
        let census = self.scene.spc.census(self.scene.first)?;
        let on = self.scene.spc.on(self.case.target)?;
        if census.is_empty() && on.is_empty() {
            ensure!(self.what != What::Repair, "the mount is gone");
            return Ok(());
        }
        *self.tally.left.entry(call.to_owned()).or_default() += 1;
        is_known(&census, &on)?;
        // The same command again completes the job. After a mount, that is the next attempt.
        match self.what {
            What::Mount => Ok(()),
            What::Unmount => {
                self.scene.run(&self.umount)?.ok()?;
                self.is_clean()
            }
            What::Repair => {
                let again = self.scene.run(&self.command)?;
                let nothing = again.status == Status::Code(NOTHING);
                ensure!(again.success() || nothing, "run again: {again}");
                self.is_made()
            }
        }
    }

    /// Checks that `spc serve` clears leftovers without another command, and keeps none of them.
    fn serve_finishes(&mut self, stepped: &Stepped) -> Result<()> {
        let on = self.scene.spc.on(self.case.target)?;
        match stepped.output.status {
            Status::Code(0) => {
                self.tally.done += 1;
                let expected = usize::from(self.what == What::Mount);
                ensure!(on.len() == expected, "success, and {on:?}");
            }
            Status::Code(1 | 2 | 32) => {
                self.tally.refused += 1;
                self.is_an_error(stepped)?;
            }
            Status::Signal(6 | 9) => self.tally.died += 1,
            status => bail!("{status:?}"),
        }
        self.scene.poke()?;
        until("nothing is left", || {
            // A recorded mount is not a leftover.
            if !self.scene.spc.on(self.case.target)?.is_empty() {
                self.scene.run(&self.umount)?;
            }
            Ok(self.scene.is_clean().is_ok())
        })?;
        self.clean.are_left(self.scene)
    }

    /// Checks that the mount is as complete as without faults, and that its unmount works.
    fn is_made(&self) -> Result<()> {
        let scene = self.scene;
        let mut census = scene.spc.census(scene.first)?;
        if !census
            .records
            .iter()
            .all(|it| it["again"]["making"].is_null())
        {
            // The repair reported a leftover. The next command removes it.
            scene.run(&self.command)?.code(NOTHING)?;
            census = scene.spc.census(scene.first)?;
        }
        let files = census
            .redirects
            .values()
            .next()
            .map_or(&[][..], Vec::as_slice);
        // Where the shim could not redirect the call, spc grafted the mount, and the redirect has
        // no `ID.mount`. A socket that could not be removed is removed with the redirect.
        let parts = ["", "claim", "mount", "report"];
        let known =
            |file: &&String| parts.contains(&file.split_once('.').map_or("", |(_, part)| part));
        let redirects = files.iter().filter(known).count();
        ensure!(
            (redirects == 0) == (self.case.redirects == 0),
            "redirects: {census:?}"
        );
        scene.is_mounted(&Case {
            mount: Vec::new(),
            redirects,
            ..*self.case
        })?;
        daemons_have(scene, &self.open)?;
        if self.what == What::Repair {
            let list = scene.run(&["spc", "ls"])?.ok()?.text();
            ensure!(list.contains(" ok "), "{list}");
        }
        scene.run(&self.umount)?.ok()?;
        self.is_clean()
    }

    /// Runs the mount and the unmount again. Repairs by hand what they leave broken, so that one
    /// test run reports all defects.
    fn next_try(&self) -> Result<()> {
        let again = self.mount_and_unmount().and_then(|()| self.is_clean());
        if again.is_err() {
            self.scene.run(&["spc", "umount", "-l", self.case.target])?;
            self.is_clean()
                .with_context(|| format!("no command repairs this; the next attempt: {again:?}"))?;
        }
        again.context("the next attempt")
    }

    /// Checks that a failed command printed one error.
    fn is_an_error(&self, stepped: &Stepped) -> Result<()> {
        let error = stepped.output.error_text();
        let name = self.command.first().copied().unwrap_or_default();
        let line = |start: &str| error.lines().any(|line| line.starts_with(start));
        ensure!(
            line(&format!("{name}: ")) && line("hint: ") && !error.contains("panicked"),
            "no error with a hint, or a panic"
        );
        Ok(())
    }

    fn say(self, faults: &str) -> Result<()> {
        let (tally, took) = (self.tally, self.started.elapsed());
        let title = format!("{}, {:?}, {faults} at once", self.case.title, self.what);
        eprintln!(
            "{title}: {} of {} faults took place in {took:.0?}: {} succeeded, {} refused, {} died; left for the next command: {:?}",
            tally.happened, tally.tried, tally.done, tally.refused, tally.died, tally.left
        );
        ensure!(
            tally.happened > 0 && tally.happened * 4 >= tally.tried * 3,
            "{title}: {} of {} faults took place",
            tally.happened,
            tally.tried
        );
        ensure!(
            tally.bad.is_empty(),
            "{title}: {} bad:\n{}",
            tally.bad.len(),
            tally.bad.join("\n\n")
        );
        Ok(())
    }
}

impl Tally {
    /// Printed at once: a long run may be interrupted.
    fn is_bad(&mut self, what: String) {
        eprintln!("bad: {what}");
        self.bad.push(what);
    }
}

/// Checks that the next command will find the leftovers: there is a record, or at most a begun one.
fn is_known(census: &Census, on: &[Mount]) -> Result<()> {
    let only_begun = census.redirects.is_empty() && census.marked.is_empty() && on.is_empty();
    ensure!(
        only_begun || !census.records.is_empty(),
        "orphaned: {on:?} {census:?}"
    );
    Ok(())
}
