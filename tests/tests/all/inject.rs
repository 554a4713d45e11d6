//! Every system call of a mount and of an unmount fails, is held up, or is the last of its process: no success without
//! proof, nothing orphaned, and the next try works.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lab::{Act, Fault, Libc, Status, Stepped, errnos, program};

use crate::scene::{Case, Scene};
use crate::support::with_lab;

/// How many of the errnos of a system call are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The likeliest, and only in system calls that change something.
    Short,
    /// Each, in each.
    All,
}

/// What came of all faults in one command.
#[derive(Default)]
struct Tally {
    faults: usize,
    done: usize,
    refused: usize,
    died: usize,
    /// What was left for the next command to clear away, by the system call that failed.
    left: BTreeMap<String, usize>,
    bad: Vec<String>,
}

impl Tally {
    fn say(&self, title: &str, started: Instant) -> Result<()> {
        eprintln!(
            "{title}: {} faults in {:.0?}: {} done all the same, {} refused, {} died; left to the next command: {:?}",
            self.faults,
            started.elapsed(),
            self.done,
            self.refused,
            self.died,
            self.left
        );
        ensure!(
            self.bad.is_empty(),
            "{title}: {} bad:\n{}",
            self.bad.len(),
            self.bad.join("\n\n")
        );
        Ok(())
    }
}

/// System calls that only look, and whose failure the short run leaves out.
const LOOKS: [&str; 14] = [
    "fstat",
    "fcntl",
    "getdents64",
    "mmap",
    "newfstatat",
    "openat",
    "pread64",
    "prctl",
    "ppoll",
    "poll",
    "read",
    "readlink",
    "readlinkat",
    "statx",
];

/// The system calls of a traced command, each as often as it was made.
fn calls(stepped: &Stepped, extent: Extent) -> Vec<(String, usize)> {
    let mut numbers = BTreeMap::new();
    let mut all = Vec::new();
    for step in &stepped.steps {
        let call = step.rsplit(' ').next().unwrap_or_default();
        if extent == Extent::Short && LOOKS.contains(&call) {
            continue;
        }
        let number: &mut usize = numbers.entry(call.to_owned()).or_default();
        *number += 1;
        all.push((call.to_owned(), *number));
    }
    all
}

fn acts(call: &str, extent: Extent) -> Vec<Act> {
    let all = errnos(call).iter().map(|errno| Act::Fail(*errno));
    match extent {
        Extent::Short => all.take(1).collect(),
        Extent::All => all.collect(),
    }
}

/// What a command that failed has said: one error.
fn is_an_error(stepped: &Stepped) -> Result<()> {
    let error = stepped.output.error_text();
    let line = |start: &str| error.lines().any(|line| line.starts_with(start));
    ensure!(
        line("spc: ") && line("hint: ") && !error.contains("panicked"),
        "no error with a hint is said"
    );
    Ok(())
}

impl Scene<'_> {
    fn mount_faults(&self, case: &Case<'_>, family: bool, extent: Extent) -> Result<()> {
        let traced = self.spc.host.trace(self.first, &case.mount, family)?;
        traced.output.clone().ok()?;
        self.is_mounted(case)?;
        self.run(&["spc", "umount", case.target])?.ok()?;
        self.is_clean()?;
        let (mut tally, started) = (Tally::default(), Instant::now());
        for (call, at) in calls(&traced, extent) {
            for act in acts(&call, extent) {
                let fault = Fault {
                    call: &call,
                    at,
                    act,
                    family,
                };
                let stepped = self.spc.host.fault(self.first, &case.mount, fault)?;
                let here = || format!("{fault:?}\n{}", stepped.output);
                if let Err(error) = self.mounted_or_refused(case, &stepped, &call, &mut tally) {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                }
                if let Err(error) = self.next_try(case) {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                    self.is_clean().with_context(here)?;
                }
                tally.faults += usize::from(stepped.killed);
            }
        }
        tally.say(&format!("{}, mount", case.title), started)
    }

    fn mounted_or_refused(
        &self,
        case: &Case<'_>,
        stepped: &Stepped,
        call: &str,
        tally: &mut Tally,
    ) -> Result<()> {
        match stepped.output.status {
            Status::Code(0) => {
                tally.done += 1;
                let census = self.spc.census(self.first)?;
                let files = census.claims.values().next().map_or(&[][..], Vec::as_slice);
                // Where the shim could not carry the call, the mount was grafted, and a claim has no note. A socket
                // that could not be removed goes with the claim.
                let parts = ["", "claim", "mount", "report"];
                let known = |file: &&String| {
                    parts.contains(&file.split_once('.').map_or("", |(_, part)| part))
                };
                let claims = files.iter().filter(known).count();
                ensure!((claims == 0) == (case.claims == 0), "claims: {census:?}");
                self.is_mounted(&Case {
                    mount: Vec::new(),
                    claims,
                    ..*case
                })?;
                self.run(&["spc", "umount", case.target])?.ok()?;
                return self.is_clean();
            }
            Status::Code(1 | 2 | 32) => {
                tally.refused += 1;
                is_an_error(stepped)?;
            }
            // Without memory a program of Rust ends like that; it is as if it were killed.
            Status::Signal(6) => tally.died += 1,
            status => bail!("{status:?}"),
        }
        let census = self.spc.census(self.first)?;
        let on = self.spc.on(case.target)?;
        if !census.is_empty() || !on.is_empty() {
            *tally.left.entry(call.to_owned()).or_default() += 1;
            ensure!(!census.records.is_empty(), "orphaned: {on:?} {census:?}");
        }
        Ok(())
    }

    /// The same command again, and the unmount. What it does not put right is put right here, if that can be, so that
    /// one test tells of all that is bad.
    fn next_try(&self, case: &Case<'_>) -> Result<()> {
        let again = self
            .run(&case.mount)?
            .ok()
            .and_then(|_| self.is_mounted(case))
            .and_then(|()| self.run(&["spc", "umount", case.target])?.ok())
            .and_then(|_| self.is_clean());
        if again.is_err() {
            self.run(&["spc", "umount", "-l", case.target])?;
            self.is_clean()
                .with_context(|| format!("nothing puts it right, and the next try: {again:?}"))?;
        }
        again.context("the next try")
    }

    fn umount_faults(&self, case: &Case<'_>, family: bool, extent: Extent) -> Result<()> {
        let umount = ["spc", "umount", case.target];
        self.run(&case.mount)?.ok()?;
        let traced = self.spc.host.trace(self.first, &umount, family)?;
        traced.output.clone().ok()?;
        self.is_clean()?;
        let (mut tally, started) = (Tally::default(), Instant::now());
        for (call, at) in calls(&traced, extent) {
            for act in acts(&call, extent) {
                self.run(&case.mount)?.ok()?;
                let fault = Fault {
                    call: &call,
                    at,
                    act,
                    family,
                };
                let stepped = self.spc.host.fault(self.first, &umount, fault)?;
                let here = || format!("{fault:?}\n{}", stepped.output);
                if let Err(error) = self.unmounted_or_refused(case, &stepped, &call, &mut tally) {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                }
                if let Err(error) = self.next_try(case) {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                    self.is_clean().with_context(here)?;
                }
                tally.faults += usize::from(stepped.killed);
            }
        }
        tally.say(&format!("{}, unmount", case.title), started)
    }

    fn unmounted_or_refused(
        &self,
        case: &Case<'_>,
        stepped: &Stepped,
        call: &str,
        tally: &mut Tally,
    ) -> Result<()> {
        match stepped.output.status {
            Status::Code(0) => {
                tally.done += 1;
                return self.is_clean();
            }
            Status::Code(1 | 2 | 32) => {
                tally.refused += 1;
                is_an_error(stepped)?;
            }
            Status::Signal(6) => tally.died += 1,
            status => bail!("{status:?}"),
        }
        let census = self.spc.census(self.first)?;
        let on = self.spc.on(case.target)?;
        if census.is_empty() && on.is_empty() {
            return Ok(());
        }
        *tally.left.entry(call.to_owned()).or_default() += 1;
        ensure!(!census.records.is_empty(), "orphaned: {on:?} {census:?}");
        // Given again, it finishes.
        let umount = self.run(&["spc", "umount", case.target])?;
        umount.ok()?;
        self.is_clean()
    }
}

fn tmpfs() -> Case<'static> {
    Case::new(
        "tmpfs",
        &["-t", "tmpfs", "-o", "size=1m", "scratch"],
        "/mnt/scratch",
        0,
        0,
    )
}

/// A helper of the type ramfs: one that the shim enters, or a static one, whose mount is grafted.
fn helper(scene: &Scene<'_>, arguments: &[&str]) -> Result<Case<'static>> {
    let helper = program("helper", Libc::Gnu, arguments)?;
    scene
        .spc
        .put("/usr/local/sbin/mount.ramfs", &fs::read(helper)?)?;
    let (title, claims) = if arguments.is_empty() {
        ("a helper", 3)
    } else {
        ("a static helper", 2)
    };
    Ok(Case::new(
        title,
        &["-t", "ramfs", "made"],
        "/mnt/made",
        claims,
        0,
    ))
}

fn faults(extent: Extent, case: impl FnOnce(&Scene<'_>) -> Result<Case<'static>>) {
    with_lab(|lab| {
        let scene = Scene::new(lab, false)?;
        scene.spc.host.sh("mkdir /mnt/scratch /mnt/made")?.ok()?;
        let case = case(&scene)?;
        scene.mount_faults(&case, case.claims > 0, extent)?;
        scene.umount_faults(&case, false, extent)?;
        scene.spc.is_clean()
    });
}

#[test]
fn a_failing_system_call_is_an_error_or_does_not_matter() {
    faults(Extent::Short, |_| Ok(tmpfs()));
}

#[test]
fn a_failing_system_call_with_a_helper() {
    faults(Extent::Short, |scene| helper(scene, &[]));
}

#[test]
fn a_failing_system_call_with_a_static_helper() {
    faults(Extent::Short, |scene| helper(scene, &["-static"]));
}

#[test]
#[ignore = "long: each errno of each system call, about a thousand mounts"]
fn every_failing_system_call_is_an_error_or_does_not_matter() {
    faults(Extent::All, |_| Ok(tmpfs()));
}

#[test]
#[ignore = "long: each errno of each system call, about two thousand mounts"]
fn every_failing_system_call_with_a_helper() {
    faults(Extent::All, |scene| helper(scene, &[]));
}

#[test]
#[ignore = "long: each errno of each system call, about two thousand mounts"]
fn every_failing_system_call_with_a_static_helper() {
    faults(Extent::All, |scene| helper(scene, &["-static"]));
}
