//! README.md: its first block works as it is typed, and the page stays short.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Lab, Propagation};

use crate::support::{Spc, with_lab};

/// Number of words, as `wc -w` counts them, that the README may have.
const WORDS: usize = 700;

/// Command of the block's first line. The test loads the lab's image in its place.
const BUILD: &str = "scripts/build-image";

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> Result<String> {
    fs::read_to_string(checkout().join("README.md")).context("cannot read README.md")
}

/// Commands of the first `sh` block, with continuation lines joined.
fn first_block(text: &str) -> Result<Vec<String>> {
    let (_, rest) = text.split_once("\n```sh\n").context("no sh block")?;
    let (block, _) = rest.split_once("\n```").context("the block has no end")?;
    let commands = block.replace("\\\n", " ");
    Ok(commands.lines().map(str::to_owned).collect())
}

/// Words of a command without its comment.
fn words(command: &str) -> Vec<&str> {
    let words = command.split_whitespace();
    words.take_while(|word| !word.starts_with('#')).collect()
}

/// Mount that the block makes, and the file that it writes there.
struct Shown {
    target: String,
    mount: lab::Mount,
    /// Targets of the host's mount table before the mount.
    before: Vec<PathBuf>,
    /// Path and content.
    file: Option<(String, String)>,
}

fn targets(spc: &Spc<'_>) -> Result<Vec<PathBuf>> {
    let table = spc.host.mountinfo()?;
    let mut targets: Vec<_> = table.into_iter().map(|mount| mount.target).collect();
    targets.sort();
    Ok(targets)
}

impl Shown {
    /// Checks that the host has the mount and its file.
    fn is_there(&self, spc: &Spc<'_>) -> Result<()> {
        let on = spc.on(&self.target)?;
        ensure!(on == [self.mount.clone()], "the mount is gone: {on:?}");
        let (path, content) = self.file.as_ref().context("the block writes no file")?;
        let read = spc.host.read(path)?;
        ensure!(
            path.starts_with(&self.target) && read == format!("{content}\n").as_bytes(),
            "{path} holds {:?}",
            String::from_utf8_lossy(&read)
        );
        Ok(())
    }

    /// Checks that neither the mount nor its file, records, redirects or processes are left.
    fn is_gone(&self, spc: &Spc<'_>) -> Result<()> {
        let on = spc.on(&self.target)?;
        ensure!(on.is_empty(), "still mounted: {on:?}");
        if let Some((path, _)) = &self.file {
            spc.host.run(&["test", "!", "-e", path])?.ok()?;
        }
        let listed = spc.exec(&["spc", "ls", "--json"])?.ok()?.text();
        ensure!(listed.trim() == "[]", "{listed}");
        let after = targets(spc)?;
        ensure!(after == self.before, "{:?} became {after:?}", self.before);
        spc.is_clean()
    }
}

/// Runs the block's commands and checks what each of them promises.
fn first_block_works(lab: &Lab) -> Result<()> {
    let commands = first_block(&readme()?)?;
    let (build, commands) = commands.split_first().context("an empty block")?;
    ensure!(words(build) == [BUILD], "the first command is {build}");
    let mode = fs::metadata(checkout().join(BUILD))?.permissions().mode();
    ensure!(mode & 0o111 == 0o111, "{BUILD} has mode {mode:o}");

    let (shared, docker) = (Propagation::Shared, Engine::Docker);
    let spc = Spc::loaded(lab, shared, docker, Base::Trixie)?;
    let mut shown: Option<Shown> = None;
    let (mut restarted, mut listed, mut unmounted) = (false, false, false);
    for command in commands {
        let before = targets(&spc)?;
        let output = spc.host.sh(command)?.ok()?;
        let words = words(command);
        let runs = |part: &[&str]| words.windows(part.len()).any(|words| words == part);
        let last = (*words.last().context("an empty line")?).to_owned();
        if runs(&["spc", "mount"]) {
            let on = spc.on(&last)?;
            let [mount] = on.as_slice() else {
                anyhow::bail!("{command}: not mounted once: {on:?}");
            };
            shown = Some(Shown {
                mount: mount.clone(),
                target: last,
                before,
                file: None,
            });
        } else if let Some(shown) = &mut shown {
            if let ["echo", content @ .., path] = words.as_slice() {
                let path = path.strip_prefix('>').context("echo writes to no file")?;
                shown.file = Some((path.to_owned(), content.join(" ")));
            }
            if runs(&["spc", "umount"]) {
                shown.is_gone(&spc).with_context(|| command.clone())?;
                unmounted = true;
                continue;
            }
            if runs(&["spc", "ls"]) {
                let text = output.text();
                listed = text.lines().any(|line| line.starts_with(&shown.target));
            }
            restarted |= runs(&["docker", "restart"]);
            shown.is_there(&spc).with_context(|| command.clone())?;
        }
    }
    ensure!(
        listed && restarted && unmounted,
        "the block does not list ({listed}), restart ({restarted}) and unmount ({unmounted})"
    );
    Ok(())
}

#[test]
fn the_first_block_of_the_readme_works() {
    with_lab(first_block_works);
}

#[test]
fn the_readme_is_short() {
    let words = readme().unwrap().split_whitespace().count();
    assert!(words <= WORDS, "README.md has {words} words");
}
