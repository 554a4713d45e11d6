//! Fixture of the crash tests: a container on its host, a mount in it, and checks of what belongs
//! to the mount.

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Signal};
use rustix::process::{Pid, kill_process};

use crate::support::{Spc, entries, until};

/// A mount that is killed repeatedly.
pub struct Case<'a> {
    pub title: &'a str,
    /// Words of the command.
    pub mount: Vec<&'a str>,
    pub target: &'a str,
    /// Number of files of its redirect, and of processes that keep it alive.
    pub redirects: usize,
    pub daemons: usize,
}

impl<'a> Case<'a> {
    pub fn new(
        title: &'a str,
        words: &[&'a str],
        target: &'a str,
        redirects: usize,
        daemons: usize,
    ) -> Self {
        let mount = [&["spc", "mount"], words, &[target]].concat();
        Self {
            title,
            mount,
            target,
            redirects,
            daemons,
        }
    }
}

/// A host and its container, and the number of mount table entries at the start.
pub struct Scene<'lab> {
    pub spc: Spc<'lab>,
    pub first: i32,
    pub entries: usize,
    /// Whether `spc serve` runs. Otherwise it is stopped, and does not interfere.
    pub serving: bool,
}

impl<'lab> Scene<'lab> {
    pub fn new(lab: &'lab Lab, serving: bool) -> Result<Self> {
        Self::with(Spc::minimal(lab)?, serving)
    }

    pub fn with(spc: Spc<'lab>, serving: bool) -> Result<Self> {
        let first = spc.first()?;
        if !serving {
            spc.stop_serve()?;
        }
        Ok(Self {
            entries: entries(&spc.host)?,
            spc,
            first,
            serving,
        })
    }

    pub fn run(&self, words: &[&str]) -> Result<lab::Output> {
        self.spc.host.command_at(self.first, words)?.run()
    }

    /// Wakes `spc serve` by a change of the host's mount table.
    pub fn poke(&self) -> Result<()> {
        let script = "mkdir -p /mnt/poke && mount -t tmpfs poke /mnt/poke && umount /mnt/poke";
        self.spc.host.sh(script)?.ok()?;
        Ok(())
    }

    /// Kills the daemons of all mounts.
    pub fn kill_daemons(&self) -> Result<()> {
        let marked = self.spc.census(self.first)?.marked;
        ensure!(!marked.is_empty(), "no daemon");
        for pid in marked.into_values().flatten() {
            kill_process(Pid::from_raw(pid).context("no process")?, Signal::KILL)?;
        }
        Ok(())
    }

    /// Checks for one mount on the host, its record, its redirect and its daemons.
    pub fn is_mounted(&self, case: &Case<'_>) -> Result<()> {
        let on = self.spc.on(case.target)?;
        ensure!(on.len() == 1, "mounts on the target: {on:?}");
        until("one more entry", || {
            Ok(entries(&self.spc.host)? == self.entries + 1)
        })?;
        let census = self.spc.census(self.first)?;
        let [record] = census.records.as_slice() else {
            bail!("records: {census:?}")
        };
        ensure!(
            record["state"] == "mounted"
                && record["target"] == case.target
                && record["mount_id"] == on[0].id,
            "{record} for {on:?}"
        );
        let id = record["id"].as_str().unwrap_or_default();
        ensure!(census.strays.is_empty(), "{census:?}");
        let redirects: Vec<_> = census
            .redirects
            .iter()
            .map(|(id, files)| (id.as_str(), files.len()))
            .collect();
        let marked: Vec<_> = census
            .marked
            .iter()
            .map(|(id, all)| (id.as_str(), all.len()))
            .collect();
        let expected = |number| {
            if number == 0 {
                vec![]
            } else {
                vec![(id, number)]
            }
        };
        ensure!(
            redirects == expected(case.redirects),
            "redirects: {census:?}"
        );
        ensure!(marked == expected(case.daemons), "processes: {census:?}");
        Ok(())
    }

    /// Checks that no mount, record, redirect or process is left, and that the mount tables are as
    /// at the start.
    pub fn is_clean(&self) -> Result<()> {
        let census = self.spc.census(self.first)?;
        ensure!(census.is_empty(), "left: {census:?}");
        let total = entries(&self.spc.host)?;
        ensure!(
            total == self.entries,
            "{} entries before, {total} after",
            self.entries
        );
        Ok(())
    }
}
