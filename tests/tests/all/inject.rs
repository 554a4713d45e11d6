//! Every system call of a mount and of an unmount fails, is held up, or is the last of its process: no success without
//! proof, nothing orphaned, and the next try works.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Act, Fault, Libc, Mount, Status, Stepped, errnos, program};

use crate::scene::{Case, Scene};
use crate::support::{Census, with_lab};

/// How many of the errnos of a system call are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The likeliest, and only in system calls that change something.
    Short,
    /// Each, in each.
    All,
    /// None: what changes something is held up, or is the last of its process.
    SlowOrDead,
}

/// What came of all faults in one command.
#[derive(Default)]
struct Tally {
    tried: usize,
    /// Those that happened: a command need not make the same calls each time.
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
            "{title}: {} faults of {} in {:.0?}: {} done all the same, {} refused, {} died; left to the next command: {:?}",
            self.faults,
            self.tried,
            started.elapsed(),
            self.done,
            self.refused,
            self.died,
            self.left
        );
        ensure!(
            self.faults > 0 && self.faults * 4 >= self.tried * 3,
            "{title}: {} faults of {} happened",
            self.faults,
            self.tried
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
        if extent != Extent::All && LOOKS.contains(&call) {
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
        Extent::SlowOrDead => vec![Act::Delay(Duration::from_millis(500)), Act::Kill],
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

/// Something is left, and the next command will know of it: there is a record, or no more than one that was begun.
fn is_known(census: &Census, on: &[Mount]) -> Result<()> {
    let only_begun = census.claims.is_empty() && census.marked.is_empty() && on.is_empty();
    ensure!(
        only_begun || !census.records.is_empty(),
        "orphaned: {on:?} {census:?}"
    );
    Ok(())
}

impl Scene<'_> {
    /// One command, and each fault in it, which is then judged: it is a mount that is unmounted after each, or an unmount
    /// before which it is mounted.
    fn each_fault(&self, case: &Case<'_>, extent: Extent, mounts: bool) -> Result<()> {
        let umount = ["spc", "umount", case.target];
        // A helper is a process of its own, which is traced as well.
        let (command, what, family) = match mounts {
            true => (&case.mount[..], "mount", case.claims > 0),
            false => (&umount[..], "unmount", false),
        };
        let prepare = || match mounts {
            true => Ok(()),
            false => self.run(&case.mount)?.ok().map(drop),
        };
        prepare()?;
        let traced = self.spc.host.trace(self.first, command, family)?;
        traced.output.clone().ok()?;
        if mounts {
            self.is_mounted(case)?;
            self.run(&umount)?.ok()?;
        }
        self.is_clean()?;
        let (mut tally, started) = (Tally::default(), Instant::now());
        for (call, at) in calls(&traced, extent) {
            for act in acts(&call, extent) {
                prepare()?;
                let fault = Fault {
                    call: &call,
                    at,
                    act,
                    family,
                };
                let stepped = self.spc.host.fault(self.first, command, fault)?;
                let here = || format!("{fault:?}\n{}", stepped.output);
                let judged = match mounts {
                    true => self.mounted_or_refused(case, &stepped, &call, &mut tally),
                    false => self.unmounted_or_refused(case, &stepped, &call, &mut tally),
                };
                if let Err(error) = judged {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                }
                if let Err(error) = self.next_try(case) {
                    tally.bad.push(format!("{error:?}\n{}", here()));
                    self.is_clean().with_context(here)?;
                }
                tally.tried += 1;
                tally.faults += usize::from(stepped.killed);
            }
        }
        tally.say(&format!("{}, {what}", case.title), started)
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
            Status::Signal(6 | 9) => tally.died += 1,
            status => bail!("{status:?}"),
        }
        let census = self.spc.census(self.first)?;
        let on = self.spc.on(case.target)?;
        if !census.is_empty() || !on.is_empty() {
            *tally.left.entry(call.to_owned()).or_default() += 1;
            is_known(&census, &on)?;
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
            Status::Signal(6 | 9) => tally.died += 1,
            status => bail!("{status:?}"),
        }
        let census = self.spc.census(self.first)?;
        let on = self.spc.on(case.target)?;
        if census.is_empty() && on.is_empty() {
            return Ok(());
        }
        *tally.left.entry(call.to_owned()).or_default() += 1;
        is_known(&census, &on)?;
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

/// A FUSE program, whose daemon stays.
fn daemon(scene: &Scene<'_>) -> Result<Case<'static>> {
    scene.spc.sh("mkdir /srv/source")?.ok()?;
    let words = ["-t", "fuse.bindfs", "-o", "x-spc.repair=no", "/srv/source"];
    Ok(Case::new("bindfs", &words, "/mnt/made", 3, 1))
}

fn faults(extent: Extent, case: impl FnOnce(&Scene<'_>) -> Result<Case<'static>>) {
    with_lab(|lab| {
        let scene = Scene::new(lab, false)?;
        scene.spc.host.sh("mkdir /mnt/scratch /mnt/made")?.ok()?;
        let case = case(&scene)?;
        scene.each_fault(&case, extent, true)?;
        scene.each_fault(&case, extent, false)?;
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
fn a_failing_system_call_with_a_daemon() {
    faults(Extent::Short, daemon);
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

#[test]
#[ignore = "long: each errno of each system call, about two thousand mounts"]
fn every_failing_system_call_with_a_daemon() {
    faults(Extent::All, daemon);
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_of_a_mount_by_the_kernel() {
    faults(Extent::SlowOrDead, |_| Ok(tmpfs()));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_with_a_helper() {
    faults(Extent::SlowOrDead, |scene| helper(scene, &[]));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_with_a_daemon() {
    faults(Extent::SlowOrDead, daemon);
}
