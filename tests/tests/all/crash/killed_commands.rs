//! `spc` killed at each step of a mount and of an unmount. The same command again completes the
//! job, and nothing is orphaned.

use anyhow::{Context, Result, bail, ensure};
use lab::{Base, Kill, Status, Victim};

use crate::crash::fixture::{Case, Scene};
use crate::support::{MINIMAL, until, with_gluster};

impl Scene<'_> {
    /// Kills the mount at each step, and runs the same command again.
    fn mounts(&self, case: &Case<'_>, family: bool) -> Result<()> {
        let mut steps = Vec::new();
        for at in 1.. {
            let stepped = self.spc.host.step(
                self.first,
                &case.mount,
                Kill {
                    at,
                    victim: Victim::Command,
                    family,
                    only: None,
                },
            )?;
            let here = || {
                format!(
                    "{}, killed at step {at} of its mount: {:?}",
                    case.title,
                    stepped.steps.last()
                )
            };
            if !stepped.killed {
                stepped.output.ok()?;
                break;
            }
            ensure!(
                stepped.output.status == Status::Signal(9),
                "{}\n{}",
                here(),
                stepped.output
            );
            if self.serving {
                self.poke()?;
            }
            self.run(&case.mount)?.ok().with_context(here)?;
            self.is_mounted(case).with_context(here)?;
            self.run(&["spc", "umount", case.target])?
                .ok()
                .with_context(here)?;
            self.is_clean().with_context(here)?;
            steps = stepped.steps;
        }
        self.is_mounted(case)?;
        self.run(&["spc", "umount", case.target])?.ok()?;
        self.is_clean()?;
        // Two steps in the records, one in redirects or mounts, and the end.
        ensure!(steps.len() > 10, "only {} steps were traced", steps.len());
        eprintln!(
            "{}: its mount killed at {} steps: {}",
            case.title,
            steps.len(),
            summary(&steps)
        );
        Ok(())
    }

    /// Kills the unmount at each step, and runs it again, or the mount.
    fn unmounts(&self, case: &Case<'_>, again: Again) -> Result<()> {
        let umount = ["spc", "umount", case.target];
        let mut steps = Vec::new();
        for at in 1.. {
            self.run(&case.mount)?.ok()?;
            let order = Kill {
                at,
                victim: Victim::Command,
                family: false,
                only: None,
            };
            let stepped = self.spc.host.step(self.first, &umount, order)?;
            let here = || {
                format!(
                    "{}, killed at step {at} of its unmount: {:?}",
                    case.title,
                    stepped.steps.last()
                )
            };
            if !stepped.killed {
                stepped.output.ok()?;
                break;
            }
            ensure!(
                stepped.output.status == Status::Signal(9),
                "{}\n{}",
                here(),
                stepped.output
            );
            let mounted = !self.spc.on(case.target)?.is_empty();
            let recorded = !self.spc.census(self.first)?.records.is_empty();
            if self.serving {
                self.poke()?;
            }
            if again == Again::Mount {
                self.run(&case.mount)?.ok().with_context(here)?;
                self.is_mounted(case).with_context(here)?;
                self.run(&umount)?.ok().with_context(here)?;
            } else {
                let output = self.run(&umount)?;
                let gone = output.status == Status::Code(32)
                    && output.error_text().contains(": not mounted");
                // A target with no trace left is "not mounted", as with umount(8). `spc serve` may
                // have finished the job.
                ensure!(
                    if mounted || (recorded && !self.serving) {
                        output.success()
                    } else {
                        gone || (recorded && output.success())
                    },
                    "{}: mounted {mounted}, recorded {recorded}\n{output}",
                    here()
                );
            }
            self.is_clean().with_context(here)?;
            steps = stepped.steps;
        }
        self.is_clean()?;
        ensure!(steps.len() > 5, "only {} steps were traced", steps.len());
        eprintln!(
            "{}: its unmount killed at {} steps: {}",
            case.title,
            steps.len(),
            summary(&steps)
        );
        Ok(())
    }
}

/// The steps in words, with repetitions counted.
fn summary(steps: &[String]) -> String {
    let runs = steps.chunk_by(|a, b| a == b).map(|run| match run {
        [step] => step.clone(),
        [step, ..] => format!("{step} ({} times)", run.len()),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// The command after a killed unmount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Unmount,
    Mount,
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

#[test]
fn a_killed_command_can_be_run_again() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, false)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        scene.spc.host.sh("mkdir /mnt/scratch /mnt/data")?.ok()?;
        let gluster = ["-t", "glusterfs", &source];
        let preload = Case::new("glusterfs", &gluster, "/mnt/data", 3, 1);
        let graft = [&["--route", "graft"], gluster.as_slice()].concat();
        let graft = Case::new("glusterfs by graft", &graft, "/mnt/data", 2, 1);
        for (case, family) in [(&tmpfs(), false), (&preload, true), (&graft, false)] {
            scene.mounts(case, family)?;
            scene.unmounts(case, Again::Unmount)?;
            scene.unmounts(case, Again::Mount)?;
        }
        scene.spc.is_clean()
    });
}

#[test]
fn spc_serve_cleans_up_after_killed_commands() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, true)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        scene.spc.host.sh("mkdir /mnt/scratch /mnt/data")?.ok()?;
        let preload = Case::new(
            "glusterfs, served",
            &["-t", "glusterfs", &source],
            "/mnt/data",
            3,
            1,
        );
        for case in [&tmpfs(), &preload] {
            scene.mounts(case, false)?;
            scene.unmounts(case, Again::Unmount)?;
        }
        // No command is run again: `spc serve` cleans up.
        let order = |at| Kill {
            at,
            victim: Victim::Command,
            family: false,
            only: None,
        };
        for at in 1.. {
            let stepped = scene
                .spc
                .host
                .step(scene.first, &preload.mount, order(at))?;
            if !stepped.killed {
                break;
            }
            let records = scene.spc.census(scene.first)?.records;
            if records.iter().any(|record| record["state"] == "mounted") {
                // The unmount was complete, and spc died before it could report it.
                scene.run(&["spc", "umount", preload.target])?.ok()?;
            }
            scene.poke()?;
            until("spc serve removes what a killed command left", || {
                Ok(scene.is_clean().is_ok())
            })
            .with_context(|| format!("step {at}: {:?}", stepped.steps.last()))?;
        }
        scene.run(&["spc", "umount", preload.target])?.ok()?;
        scene.spc.is_clean()
    });
}

#[test]
fn a_killed_helper_leaves_a_whole_mount_or_none() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, false)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        scene.spc.host.sh("mkdir /mnt/data")?.ok()?;
        let case = Case::new(
            "glusterfs, its helpers",
            &["-t", "glusterfs", &source],
            "/mnt/data",
            3,
            1,
        );
        let (mut failed, mut done) = (Vec::new(), Vec::new());
        // The number of steps differs by one or two from run to run. The step between the shim's
        // mount and its link `ID.mount` must always be included.
        for only in [None, Some("symlinkat")] {
            for at in 1.. {
                let order = Kill {
                    at,
                    victim: Victim::Caller,
                    family: true,
                    only,
                };
                let stepped = scene.spc.host.step(scene.first, &case.mount, order)?;
                if !stepped.killed {
                    break;
                }
                let step = stepped.steps.last().context("no step")?;
                let here = || format!("killed at step {at}: {step}\n{}", stepped.output);
                match stepped.output.status {
                    // The killed process was spc itself. Another test covers this case.
                    Status::Signal(9) => {}
                    // The helper did not need the killed process.
                    Status::Code(0) => done.push(step.clone()),
                    // 2 if the killed process was not the helper, but the one that moves it into
                    // its cgroup.
                    Status::Code(2 | 32) => {
                        scene.is_clean().with_context(here)?;
                        failed.push(step.clone());
                    }
                    _ => bail!(here()),
                }
                scene.run(&case.mount)?.ok().with_context(here)?;
                scene.is_mounted(&case).with_context(here)?;
                scene.run(&["spc", "umount", case.target])?.ok()?;
                scene.is_clean().with_context(here)?;
            }
            scene.run(&["spc", "umount", case.target])?.ok()?;
        }
        // The mount succeeded on the host, and its caller got an error.
        ensure!(
            failed.iter().any(|step| step.ends_with(" symlinkat")),
            "errors: {failed:?}, mounts: {done:?}"
        );
        eprintln!(
            "a helper's process was killed at {} steps: {} errors, {} mounts",
            failed.len() + done.len(),
            failed.len(),
            done.len()
        );
        scene.spc.is_clean()
    });
}

#[test]
fn a_target_is_usable_after_its_daemon_or_container_died() {
    with_gluster(|lab, cluster| {
        let mut scene = Scene::new(lab, true)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        scene.spc.host.sh("mkdir /mnt/data")?.ok()?;
        let case = Case::new(
            "glusterfs",
            &[
                "-t",
                "glusterfs",
                "-o",
                "x-spc.repair=no,x-spc.container",
                &source,
            ],
            "/mnt/data",
            3,
            1,
        );

        // A mount whose daemon is gone returns only errors, and must be unmounted all the same.
        scene.run(&case.mount)?.ok()?;
        scene.kill_daemons()?;
        let ls = scene.spc.host.run(&["ls", case.target])?;
        ensure!(!ls.success(), "the daemon still serves the mount: {ls}");
        let again = scene.run(&case.mount)?.code(32)?;
        let error = again.error_text();
        ensure!(error.contains("dead") && error.contains("hint:"), "{error}");
        let list = scene.run(&["spc", "ls"])?.ok()?.text();
        ensure!(list.contains(" stale "), "{list}");
        scene.run(&["spc", "umount", case.target])?.ok()?;
        scene.is_clean()?;

        // spc dies after its mount and before the proof, and then the whole container ends.
        let order = Kill {
            at: 1,
            victim: Victim::Command,
            family: false,
            only: Some("wait4"),
        };
        let stepped = scene.spc.host.step(scene.first, &case.mount, order)?;
        ensure!(stepped.killed && scene.spc.on(case.target)?.len() == 1);
        scene.kill_daemons()?;
        scene.spc.host.run(&["docker", "rm", "-f", "spc"])?.ok()?;
        scene.spc.run(Base::Trixie, &MINIMAL)?.ok()?;
        scene.first = scene.spc.first()?;
        scene.run(&case.mount)?.ok()?;
        scene.is_mounted(&case)?;
        scene.run(&["spc", "umount", case.target])?.ok()?;
        scene.is_clean()?;
        scene.spc.is_clean()
    });
}
