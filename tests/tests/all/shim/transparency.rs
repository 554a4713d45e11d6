//! The shim on a bare host: random sequences of calls with it and without it, and single calls at
//! the edges of what it may redirect. The host's namespace is the host; the programs make a
//! namespace of their own for each sequence, which stands for the container.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{Host, HostOptions, Lab, Libc, Output, Propagation};

use crate::support::with_lab;

const SEQUENCES: &str = "/tmp/sequences";
const EDGES: &str = "/tmp/edges";
const COUNTS: &str = "/tmp/counts";
const SHIM: &str = "LD_PRELOAD=/tmp/shim.so";

/// A host with the programs, and with names below `/stage` as the programs make them.
fn stage(lab: &Lab) -> Result<Host<'_>> {
    let host = lab.host(HostOptions {
        propagation: Propagation::Private,
        ..HostOptions::default()
    })?;
    let shim = lab::library("spc-shim", "libspc_shim.so")?;
    host.copy_in(shim, "/tmp/shim.so")?;
    let renaming = ["-shared", "-fPIC", "-DLIBRARY"];
    for (name, arguments, path) in [
        ("sequences", &[][..], SEQUENCES),
        ("edges", &[], EDGES),
        ("edges", &renaming, "/tmp/renaming.so"),
        ("counts", &[], COUNTS),
    ] {
        host.copy_in(lab::program(name, Libc::Gnu, arguments)?, path)?;
    }
    // Shared, for a namespace whose mounts are slaves. `/top` is a link that only root can make.
    let names = "mkdir -p /etc/spc /stage && mount -t ramfs stage /stage &&
        mount --make-shared /stage && cd /stage && mkdir -p a/sub b c user && touch f g &&
        ln -s a la && ln -s f lf && ln -s nowhere lost && mknod disk b 7 200 &&
        ln -s ../a user/link && chown 65534 user && ln -s stage /top";
    host.sh(names)?.ok()?;
    Ok(host)
}

fn settings(host: &Host<'_>, text: &str) -> Result<()> {
    host.write("/etc/spc/shim.conf", text.as_bytes())
}

/// Runs a program with this environment, and returns its output.
fn run(host: &Host<'_>, environment: &[&str], words: &[&str]) -> Result<Output> {
    host.run(&[&["env"], environment, words].concat())?.ok()
}

/// Checks that every call of these sequences has the result that it has without the shim.
fn are_equal(host: &Host<'_>, words: &[&str]) -> Result<()> {
    let words = [&[SEQUENCES], words].concat();
    let plain = run(host, &[], &words)?.text();
    let with_shim = run(host, &[SHIM], &words)?.text();
    let calls = plain.lines().count();
    ensure!(calls > 1000, "{calls} calls:\n{plain}");
    let mut pairs = plain.lines().zip(with_shim.lines());
    if let Some((one, other)) = pairs.find(|(one, other)| one != other) {
        let number = one.split(['.', ' ']).next().unwrap_or_default();
        let steps: Vec<_> = plain
            .lines()
            .filter(|line| line.starts_with(&format!("{number}.")))
            .collect();
        anyhow::bail!(
            "sequence {number}: without the shim\n  {one}\nwith it\n  {other}\nin\n  {}",
            steps.join("\n  ")
        );
    }
    ensure!(calls == with_shim.lines().count(), "{with_shim}");
    Ok(())
}

#[test]
fn random_sequences_of_calls_that_pass_are_as_without_the_shim() {
    with_lab(|lab| {
        let host = stage(lab)?;
        settings(&host, "type none\n")?;
        are_equal(&host, &["1", "2000"]).context("nothing is redirected")?;
        // The sequences mount none of these types.
        settings(&host, "type fuse fuse.* nfs ceph\n")?;
        are_equal(&host, &["-o", "5000", "800"]).context("other types are redirected")
    });
}

#[test]
fn no_sequence_of_calls_mounts_a_redirected_type_in_the_container() {
    with_lab(|lab| {
        let host = stage(lab)?;
        settings(&host, "type tmpfs\n")?;
        let words = [SEQUENCES, "1", "1200", "tmpfs"];
        let found = run(&host, &[SHIM], &words)?.text();
        ensure!(found.is_empty(), "{found}");
        // Without the shim, the same sequences do mount it.
        let words = [SEQUENCES, "1", "60", "tmpfs"];
        let found = run(&host, &[], &words)?.text();
        ensure!(found.contains("LEAK"), "{found}");
        Ok(())
    });
}

#[test]
fn calls_at_the_edges_are_redirected_or_fail() {
    with_lab(|lab| {
        let host = stage(lab)?;
        let mut printed = String::new();
        for (text, environment, group) in [
            ("type tmpfs fuse ext4\n", SHIM, "types"),
            ("type tmpfs\noperation bind\n", SHIM, "binds"),
            ("type tmpfs\ntarget /stage/c\n", SHIM, "targets"),
            (
                "type tmpfs\n",
                "LD_PRELOAD=/tmp/shim.so /tmp/renaming.so",
                "renamed",
            ),
        ] {
            settings(&host, text)?;
            printed += &run(&host, &[environment], &[EDGES, group])?.text();
            printed.push('\n');
        }
        let fine: BTreeSet<_> = printed.lines().collect();
        ensure!(
            fine.len() == 14 && fine.iter().all(|line| line.ends_with(": ok")),
            "{printed}"
        );
        Ok(())
    });
}

#[test]
fn passed_calls_cost_little() {
    with_lab(|lab| {
        let host = stage(lab)?;
        settings(&host, "type fuse fuse.* nfs ceph\n")?;
        // The limit of system calls, or of instructions for syscall(2). A bind takes one more: its
        // source may have a redirected type.
        for (words, limit) in [
            (&["mount", "none", "/stage/a", "tmpfs", "0"][..], 2),
            (&["mount", "none", "/stage/none", "tmpfs", "0"], 2),
            (&["mount", "none", "/stage", "none", "0x20"], 2),
            (&["mount", "/stage/a", "/stage/b", "none", "0x1000"], 3),
            (&["syscall"], 10),
        ] {
            let words = [&[COUNTS], words].concat();
            let count = |environment: &[&str]| -> Result<u64> {
                let count = run(&host, environment, &words)?.text();
                count.parse().context(count)
            };
            let (plain, with_shim) = (count(&[])?, count(&[SHIM])?);
            ensure!(
                with_shim > plain && with_shim <= plain + limit,
                "{words:?}: {plain} without the shim, {with_shim} with it"
            );
        }
        Ok(())
    });
}
