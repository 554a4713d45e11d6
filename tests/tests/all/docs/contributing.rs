//! CONTRIBUTING.md, section "Add a file system": a small FUSE program needs no code.
//! `spc/tests/contributing.rs` checks the paths that the section names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Lab, Libc, Propagation, program};

use crate::observe::doctor::{has_all, missed};
use crate::support::{MINIMAL, Spc, with_lab};

/// Program that neither the image nor the table of kinds knows: `tests/programs/onefile.c`.
const PROGRAM: &str = "onefile";
const KIND: &str = "fuse.onefile";
const IMAGE: &str = "localhost/spc-with-onefile";

/// First line of the Containerfile in `docs/kinds/fuse.md`, to which the section refers.
fn from_line() -> Result<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kinds/fuse.md");
    let text = fs::read_to_string(page)?;
    let (_, block) = text
        .split_once("\n```dockerfile\n")
        .context("no Containerfile in docs/kinds/fuse.md")?;
    let line = block.lines().next().unwrap_or_default();
    ensure!(line.starts_with("FROM "), "not a FROM line: {line}");
    Ok(line.to_owned())
}

/// Builds an image with the program, copied because a lab host reaches no package archive.
fn build(spc: &Spc<'_>) -> Result<()> {
    let host = &spc.host;
    let binary = program(PROGRAM, Libc::Gnu, &[])?;
    host.copy_in(binary, format!("/srv/image/{PROGRAM}"))?;
    let lines = format!("{}\nCOPY {PROGRAM} /usr/bin/{PROGRAM}\n", from_line()?);
    host.write("/srv/image/Containerfile", lines.as_bytes())?;
    let file = "/srv/image/Containerfile";
    host.run(&["docker", "build", "-t", IMAGE, "-f", file, "/srv/image"])?
        .ok()?;
    Ok(())
}

fn add(lab: &Lab) -> Result<()> {
    let (shared, docker) = (Propagation::Shared, Engine::Docker);
    let spc = Spc::start(lab, shared, docker, Base::Trixie, &MINIMAL)?;
    let missed = missed(&spc, KIND)?;
    ensure!(
        matches!(missed.as_slice(), [(what, _)] if what.contains(PROGRAM)),
        "the plain image: {missed:?}"
    );

    build(&spc)?;
    spc.remove()?;
    spc.run_image(IMAGE, &MINIMAL)?.ok()?;
    has_all(&spc, KIND)?;
    let source = "said-by-the-source";
    let mount = ["-t", KIND, source];
    spc.life(&mount, "/mnt/onefile", [KIND, source], |record| {
        ensure!(
            record["route"] == "preload" && record["daemon"][0].is_number(),
            "{record}"
        );
        let listed = spc.host.sh("ls /mnt/onefile")?.ok()?.text();
        ensure!(listed.trim() == "file", "{listed}");
        ensure!(spc.host.read("/mnt/onefile/file")? == source.as_bytes());
        Ok(())
    })?;
    spc.is_clean()
}

#[test]
fn a_small_fuse_program_is_added_as_the_guide_says() {
    with_lab(add);
}
