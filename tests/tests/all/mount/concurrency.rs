//! Many commands at once: on one target, on many targets, and a mount against its unmount.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Lab, Output, Process, Status};

use crate::support::{Spc, entries, until, with_gluster};

/// A host and its container, where commands start without waiting for earlier ones.
struct Scene<'lab> {
    spc: Spc<'lab>,
    first: i32,
    entries: usize,
    source: String,
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab, cluster: &Cluster<'_>) -> Result<Self> {
        let spc = Spc::privileged(lab)?;
        Ok(Self {
            first: spc.first()?,
            entries: entries(&spc.host)?,
            source: format!("{}:/vol", cluster.nodes()[0].host().address()),
            spc,
        })
    }

    fn gluster(&self) -> [&str; 3] {
        ["-t", "glusterfs", &self.source]
    }

    fn start(&self, command: &str, words: &[&str], target: &str) -> Result<Process> {
        let words = [&["spc", command], words, &[target]].concat();
        self.spc.host.command_at(self.first, &words)?.spawn()
    }

    /// Starts the same command once per set of words, then waits for all.
    fn at_once(&self, requests: &[&[&str]], target: &str) -> Result<Vec<Output>> {
        let started = requests
            .iter()
            .map(|words| self.start("mount", words, target))
            .collect::<Result<Vec<_>>>()?;
        started.into_iter().map(Process::wait).collect()
    }

    fn umount(&self, target: &str) -> Result<Output> {
        self.start("umount", &[], target)?.wait()
    }

    /// Checks for exactly this many mounts, records, redirects and daemons.
    fn has(&self, mounts: usize, daemons: usize) -> Result<()> {
        until("as many more entries as mounts", || {
            Ok(entries(&self.spc.host)? == self.entries + mounts)
        })?;
        let census = self.spc.census(self.first)?;
        let count = (
            census.records.len(),
            census.claims.len(),
            census.marked.len(),
        );
        ensure!(count == (mounts, daemons, daemons), "{census:?}");
        ensure!(
            census.strays.is_empty()
                && census.marked.values().all(|all| all.len() == 1)
                && census
                    .records
                    .iter()
                    .all(|record| record["state"] == "mounted"),
            "{census:?}"
        );
        Ok(())
    }
}

#[test]
fn eight_mounts_of_one_target_make_one_mount() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        scene.spc.host.sh("mkdir /mnt/data")?.ok()?;
        let (gluster, small, large) = (
            scene.gluster(),
            ["-t", "tmpfs", "-o", "size=1m", "scratch"],
            ["-t", "tmpfs", "-o", "size=2m", "scratch"],
        );
        for (request, daemons) in [(gluster.as_slice(), 1), (&small, 0)] {
            for output in scene.at_once(&[request; 8], "/mnt/data")? {
                output.ok()?;
            }
            ensure!(scene.spc.on("/mnt/data")?.len() == 1);
            scene.has(1, daemons)?;
            scene.umount("/mnt/data")?.ok()?;
            scene.has(0, 0)?;
        }
        for requests in [[small.as_slice(), &large], [&gluster, &small]] {
            let (won, lost): (Vec<_>, Vec<_>) = scene
                .at_once(&requests, "/mnt/data")?
                .into_iter()
                .partition(Output::success);
            ensure!(won.len() == 1 && lost.len() == 1, "{won:?} {lost:?}");
            let text = lost[0].error_text();
            ensure!(
                lost[0].status == Status::Code(32)
                    && text.starts_with("spc: /mnt/data is already mounted: ")
                    && text.contains("hint: "),
                "{text}"
            );
            ensure!(scene.spc.on("/mnt/data")?.len() == 1);
            scene.umount("/mnt/data")?.ok()?;
            scene.has(0, 0)?;
        }
        scene.spc.is_clean()
    });
}

impl Scene<'_> {
    /// Mounts every target at once, probes all mounts, and unmounts all at once.
    fn many<'a>(
        &self,
        title: &str,
        targets: &[String],
        request: impl Fn(usize) -> &'a [&'a str],
    ) -> Result<()> {
        let is_gluster = |number| request(number).contains(&"glusterfs");
        let volumes = (0..targets.len()).filter(|number| is_gluster(*number));
        let volumes: Vec<_> = volumes.map(|number| targets[number].as_str()).collect();
        let begun = Instant::now();
        let all = targets.iter().enumerate();
        let started = all
            .map(|(number, target)| self.start("mount", request(number), target))
            .collect::<Result<Vec<_>>>()?;
        for process in started {
            process.wait()?.ok()?;
        }
        let mounted = begun.elapsed();
        self.has(targets.len(), volumes.len())?;
        for (number, target) in targets.iter().enumerate() {
            let on = self.spc.on(target)?;
            let expected = if is_gluster(number) {
                "fuse.glusterfs"
            } else {
                "tmpfs"
            };
            ensure!(
                on.len() == 1 && on[0].fstype == expected,
                "{target}: {on:?}"
            );
        }
        // Data written through one mount can be read through every other.
        let script = r#"echo "$0" >$1/at-once && for t; do read -r t <$t/at-once && [ "$t" = "$0" ] || exit 1; done"#;
        let words = [&["sh", "-c", script, title], volumes.as_slice()].concat();
        self.spc.host.run(&words)?.ok()?;
        let begun = Instant::now();
        let started = targets
            .iter()
            .map(|target| self.start("umount", &[], target))
            .collect::<Result<Vec<_>>>()?;
        for process in started {
            process.wait()?.ok()?;
        }
        eprintln!(
            "{} mounts at once ({title}): {mounted:.1?}, their unmounts: {:.1?}",
            targets.len(),
            begun.elapsed()
        );
        self.has(0, 0)
    }
}

#[test]
fn fifty_targets_mount_and_unmount_at_once() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let gluster = scene.gluster();
        let graft = [&["--route", "graft"], gluster.as_slice()].concat();
        let tmpfs = ["-t", "tmpfs", "-o", "size=1m", "scratch"];
        let targets: Vec<_> = (0..50).map(|number| format!("/mnt/{number}")).collect();
        let mkdir: Vec<_> = ["mkdir"]
            .into_iter()
            .chain(targets.iter().map(String::as_str))
            .collect();
        scene.spc.host.run(&mkdir)?.ok()?;
        scene.many("by every route", &targets, |number| match number % 5 {
            0 => &gluster,
            1 => &graft,
            _ => &tmpfs,
        })?;
        scene.many("all of them GlusterFS", &targets, |_| &gluster)?;
        scene.spc.is_clean()
    });
}

#[test]
fn a_mount_that_races_its_unmount_is_whole_or_gone() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        scene.spc.host.sh("mkdir /mnt/data")?.ok()?;
        let gluster = scene.gluster();
        let tmpfs = ["-t", "tmpfs", "-o", "size=1m", "scratch"];
        for (request, daemons, rounds) in [(tmpfs.as_slice(), 0, 40), (&gluster, 1, 12)] {
            let (mut mounted, mut unmounted, mut nothing) = (0, 0, 0);
            for _ in 0..rounds {
                let mount = scene.start("mount", request, "/mnt/data")?;
                let umount = scene.start("umount", &[], "/mnt/data")?;
                mount.wait()?.ok()?;
                mounted += 1;
                let output = umount.wait()?;
                if output.success() {
                    unmounted += 1;
                } else {
                    let text = output.error_text();
                    ensure!(text.contains("/mnt/data: not mounted"), "{output}");
                    nothing += 1;
                }
                // Both commands have ended: the mount is there as a whole, or not at all.
                let there = scene.spc.on("/mnt/data")?.len();
                scene
                    .has(there, there * daemons)
                    .with_context(|| format!("the unmount came to: {output}"))?;
            }
            eprintln!("{mounted} mounts against {unmounted} unmounts, {nothing} found nothing");
            if !scene.spc.on("/mnt/data")?.is_empty() {
                scene.umount("/mnt/data")?.ok()?;
            }
            scene.has(0, 0)?;
        }
        scene.spc.is_clean()
    });
}
