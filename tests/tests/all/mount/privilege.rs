//! The least privileges that a container needs. With them the main job works; without any one of
//! them an error names it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{Base, Cluster, Engine, Lab, Propagation};

use crate::kinds::gluster::main_job;
use crate::support::{MINIMAL, Spc, with_gluster};

const TARGET: &str = "/mnt/least";

/// Exit code of a mount when one part of the run line is missing.
const PARTS: [(&str, i32); 6] = [
    ("--cap-add=SYS_ADMIN", 2),
    ("--cap-add=SYS_CHROOT", 2),
    ("--cap-add=SYS_PTRACE", 2),
    ("--device=/dev/fuse", 2),
    ("--pid=host", 2),
    // The helper runs, and cannot reach the server.
    ("--net=host", 32),
];

fn each_part_is_needed(spc: &Spc<'_>, cluster: &Cluster<'_>) -> Result<()> {
    let source = format!("{}:/vol", cluster.nodes()[0].host().address());
    for (part, code) in PARTS {
        spc.remove()?;
        let rest: Vec<&str> = MINIMAL.into_iter().filter(|word| *word != part).collect();
        spc.run(Base::Trixie, &rest)?.ok()?;

        // A daemon on the host uses the host's network.
        let stay = ["spc", "mount", "-o", "x-spc.container"];
        let mount = [&stay[..], &["-t", "glusterfs", &source, TARGET]].concat();
        let output = spc.exec(&mount)?.code(code)?;
        let error = output.error_text();
        let hint = error.lines().find(|line| line.starts_with("hint: "));
        let hint = hint.with_context(|| format!("no hint: {output}"))?;
        ensure!(hint.contains(part), "not a word of {part}: {output}");

        let output = spc.exec(&["spc", "doctor"])?;
        let named = output
            .text()
            .lines()
            .any(|line| line.trim_start().starts_with("hint: ") && line.contains(part));
        ensure!(!output.success() && named, "not a word of {part}: {output}");

        ensure!(spc.on(TARGET)?.is_empty(), "mounted without {part}");
        spc.is_clean().with_context(|| format!("without {part}"))?;
    }
    Ok(())
}

/// Checks that a directory which only another user can enter takes one more capability.
fn anothers_directory(spc: &Spc<'_>) -> Result<()> {
    let make = "mkdir -p /home/user/data && chmod 700 /home/user && chown -R 1000 /home/user";
    spc.host.sh(make)?.ok()?;
    let mount = ["spc", "mount", "-t", "tmpfs", "none", "/home/user/data"];
    let output = spc.exec(&mount)?.code(32)?;
    let more = "--cap-add=DAC_READ_SEARCH";
    ensure!(output.error_text().contains(more), "{output}");

    spc.remove()?;
    spc.run(Base::Trixie, &[&MINIMAL[..], &[more]].concat())?
        .ok()?;
    spc.exec(&mount)?.ok()?;
    ensure!(spc.on("/home/user/data")?.len() == 1);
    spc.umount("/home/user/data")?;
    Ok(())
}

/// Checks that the shim needs no more than the launcher.
fn nsenter(spc: &Spc<'_>, cluster: &Cluster<'_>) -> Result<()> {
    let source = format!("{}:/vol", cluster.nodes()[0].host().address());
    let option = format!("--mount=/proc/{}/ns/mnt", spc.pid()?);
    let mount = [
        "nsenter",
        &option,
        "mount",
        "-t",
        "glusterfs",
        &source,
        "/mnt",
    ];
    spc.host.run(&mount)?.ok()?;
    let on = spc.on("/mnt")?;
    ensure!(on.len() == 1 && on[0].fstype == "fuse.glusterfs", "{on:?}");
    spc.host
        .run(&["nsenter", &option, "umount", "/mnt"])?
        .ok()?;
    ensure!(spc.on("/mnt")?.is_empty(), "still mounted");
    Ok(())
}

fn minimal(lab: &Lab, engine: Engine) -> Result<Spc<'_>> {
    let spc = Spc::start(lab, Propagation::Shared, engine, Base::Trixie, &MINIMAL)?;
    let output = spc.exec(&["spc", "doctor"])?.ok()?;
    ensure!(!output.text().contains("FAIL"), "{output}");
    Ok(spc)
}

#[test]
fn minimal_privileges_suffice_with_docker() {
    with_gluster(|lab, cluster| {
        let spc = minimal(lab, Engine::Docker)?;
        main_job(&spc, cluster, TARGET)?;
        nsenter(&spc, cluster)?;
        anothers_directory(&spc)?;
        each_part_is_needed(&spc, cluster)
    });
}

#[test]
fn minimal_privileges_suffice_with_podman() {
    with_gluster(|lab, cluster| {
        let spc = minimal(lab, Engine::Podman)?;
        main_job(&spc, cluster, "/mnt/least podman")?;

        // Capabilities are worthless in a user namespace, as with rootless podman or docker's
        // userns-remap.
        spc.remove()?;
        let users = ["--uidmap", "0:100000:65536"];
        spc.run(Base::Trixie, &[&MINIMAL[..], &users].concat())?
            .ok()?;
        let mount = ["spc", "mount", "-t", "tmpfs", "none", "/mnt/least podman"];
        let output = spc.exec(&mount)?.code(2)?;
        ensure!(output.error_text().contains("--userns=host"), "{output}");
        Ok(())
    });
}

#[test]
fn documents_show_the_tested_run_line() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let line = MINIMAL.join(" ");
    for file in ["image/Containerfile", "image/README.md", "docs/run.md"] {
        let text = fs::read_to_string(checkout.join(file)).unwrap();
        // The shell reads a line that is broken in the text as one line.
        let words: Vec<&str> = text
            .split_whitespace()
            .filter(|word| *word != "\\")
            .collect();
        assert!(words.join(" ").contains(&line), "not in {file}: {line}");
    }
}
