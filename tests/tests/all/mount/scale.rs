//! The cost of a mount does not grow with the host. spc never reads a whole mount table for one
//! entry, nor all records for one. All mount tables of the machine together gain one entry.

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Lab, Libc, Propagation, program};

use crate::support::{MINIMAL, Spc, entries, until, with_gluster, with_minimal_container};

/// Number of foreign mounts on the host.
const OTHERS: usize = 10_000;

/// Number of mounts made by spc.
const OWN: usize = 150;

/// Bytes by which two runs may differ: numbers get longer, and buffers fill in another number of
/// steps.
const MORE: u64 = 4096;

/// Bytes that one mount and one unmount read. Programs run in the container's namespaces, without
/// docker's system call filter.
fn read(spc: &Spc<'_>, first: i32) -> Result<u64> {
    let target = "/mnt/measured";
    let mount = ["/reads", "spc", "mount", "-t", "tmpfs", "own", target];
    let umount = ["/reads", "spc", "umount", target];
    let mut bytes = 0;
    for words in [&mount[..], &umount] {
        let printed = spc.host.command_at(first, words)?.run()?.ok()?.text();
        let number: u64 = printed.trim().parse().context(printed)?;
        ensure!(number > 0, "nothing was counted");
        bytes += number;
    }
    Ok(bytes)
}

#[test]
fn bytes_read_do_not_grow_with_the_host() {
    with_minimal_container(|spc| {
        let first = spc.first()?;
        let host = &spc.host;
        spc.put(
            "/reads",
            &std::fs::read(program("reads", Libc::Gnu, &["-static"])?)?,
        )?;
        host.copy_in(program("many", Libc::Gnu, &["-static"])?, "/opt/many")?;
        host.sh("mkdir /mnt/measured /mnt/own")?.ok()?;
        // The first mount creates what later mounts find.
        read(spc, first)?;
        let empty = read(spc, first)?;
        host.run(&["/opt/many", &OTHERS.to_string(), "/mnt/many"])?
            .ok()?;
        let crowded = read(spc, first)?;
        let script = "for at in $(seq $1); do spc mount -t tmpfs -o x-mount.mkdir own /mnt/own/$at || exit; done";
        let own = ["sh", "-c", script, "own", &OWN.to_string()];
        host.command_at(first, &own)?.run()?.ok()?;
        let owned = read(spc, first)?;
        eprintln!(
            "a mount and its unmount read {empty} bytes, with {OTHERS} other mounts {crowded}, with {OWN} of our own {owned}"
        );
        ensure!(crowded <= empty + MORE && owned <= empty + MORE);
        // docker's seccomp filter of this version hides the newer system calls: spc works without
        // them.
        spc.mount(&["-t", "tmpfs", "own", "/mnt/measured"])?;
        ensure!(spc.on("/mnt/measured")?.len() == 1);
        spc.umount("/mnt/measured")?;
        ensure!(spc.on("/mnt/measured")?.is_empty());
        let all = spc.exec(&["spc", "umount", "--all"])?;
        all.ok()?;
        spc.is_clean()
    });
}

/// Checks that mounts, restarts of the container and unmounts keep the number of mount table
/// entries right.
fn entries_stay(lab: &'static Lab, propagation: Propagation, source: &str) -> Result<()> {
    let spc = Spc::start(lab, propagation, Engine::Docker, Base::Trixie, &MINIMAL)?;
    let targets = ["/mnt/a", "/mnt/b", "/mnt/c", "/mnt/d", "/mnt/e"];
    spc.host.run(&[&["mkdir"], &targets[..]].concat())?.ok()?;
    let before = entries(&spc.host)?;
    let are = |what: &str, mounts: usize| {
        until(what, || Ok(entries(&spc.host)? == before + mounts))
            .with_context(|| format!("{before} before: {:?}", entries(&spc.host)))
    };
    for (at, target) in targets.into_iter().enumerate() {
        let words = match at % 2 {
            0 => ["-t", "tmpfs", "own", target],
            _ => ["-t", "glusterfs", source, target],
        };
        spc.mount(&words)?;
        are("one more entry for each mount", at + 1)?;
    }
    for _ in 0..2 {
        spc.host.sh("docker restart -t 5 spc")?.ok()?;
        are("as many after a restart", targets.len())?;
    }
    spc.remove()?;
    spc.run(Base::Trixie, &MINIMAL)?.ok()?;
    are("as many with another container", targets.len())?;
    for (gone, target) in targets.into_iter().enumerate() {
        spc.umount(target)?;
        are("one less", targets.len() - gone - 1)?;
    }
    until("nothing is left", || Ok(spc.is_clean().is_ok()))
}

#[test]
fn each_mount_adds_one_entry() {
    with_gluster(|lab, cluster| {
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        for propagation in [Propagation::Shared, Propagation::Private] {
            entries_stay(lab, propagation, &source).with_context(|| format!("{propagation:?}"))?;
        }
        Ok(())
    });
}
