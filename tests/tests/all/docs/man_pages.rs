//! Man pages and shell completions of the image, read by the programs that people use.

use anyhow::{Result, bail, ensure};
use lab::{Host, HostOptions, Lab, Root};

use crate::support::{Spc, with_lab};

/// Directory of the files in the image.
const PLACES: [&str; 4] = ["man", "bash-completion", "zsh", "fish"];

/// Commands that `spc --help` lists.
fn commands(spc: &Spc<'_>) -> Result<Vec<String>> {
    let help = spc.exec(&["spc", "--help"])?.ok()?.text();
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect())
}

/// Boots a host with the image's files in `/srv/share`.
fn reader<'lab>(lab: &'lab Lab, spc: &Spc<'_>) -> Result<Host<'lab>> {
    let host = lab.host(HostOptions {
        root: Root::Readers,
        ..HostOptions::default()
    })?;
    let pack = [&["tar", "-C", "/usr/share", "-c"], &PLACES[..]].concat();
    let packed = spc.exec(&pack)?.ok()?.stdout;
    host.sh("mkdir -p /srv/share")?.ok()?;
    host.command(&["tar", "-C", "/srv/share", "-x"])?
        .input(&packed)?
        .run()?
        .ok()?;
    Ok(host)
}

fn man(lab: &Lab) -> Result<()> {
    let spc = Spc::minimal(lab)?;
    let commands = commands(&spc)?;
    ensure!(commands.len() >= 8, "{commands:?}");
    let host = reader(lab, &spc)?;
    let pages = commands.iter().map(|command| format!("spc-{command}"));
    for page in pages.chain(["spc".to_owned(), "mount.spc".to_owned()]) {
        let file = format!("/srv/share/man/man8/{page}.8");
        let lint = format!("mandoc -T lint -W error {file}");
        let found = host.sh(&lint)?.ok()?.text();
        ensure!(found.is_empty(), "{page}: {found}");
        let show = format!("LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings=w -l {file}");
        let shown = host.sh(&show)?.ok()?;
        ensure!(shown.error_text().is_empty(), "{shown}");
        let text = shown.text();
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            ensure!(
                text.contains(&format!("\n{part}\n")),
                "{page}: no {part}: {text}"
            );
        }
        // apropos(1) and whatis(1) find the page by the line under NAME.
        let name = host.run(&["lexgrog", &file])?.ok()?.text();
        ensure!(name.contains(&format!("\"{page} - ")), "{name}");
        let printed = spc.exec(&["spc", "man", &page])?.ok()?.stdout;
        ensure!(
            printed == host.read(&file)?,
            "`spc man {page}` is not {file}"
        );
    }
    let short = spc.exec(&["spc", "man", "mount"])?.ok()?.stdout;
    ensure!(short == spc.exec(&["spc", "man", "spc-mount"])?.ok()?.stdout);
    let error = spc.exec(&["spc", "man", "look"])?.code(1)?.error_text();
    ensure!(
        error.starts_with("spc: no man page: spc-look")
            && error.contains("hint: the pages are spc, "),
        "{error}"
    );
    Ok(())
}

#[test]
fn man_pages_are_well_formed_and_found() {
    with_lab(man);
}

fn completions(lab: &Lab) -> Result<()> {
    let spc = Spc::minimal(lab)?;
    let host = reader(lab, &spc)?;
    for (shell, file) in [
        ("bash", "bash-completion/completions/spc"),
        ("zsh", "zsh/vendor-completions/_spc"),
        ("fish", "fish/vendor_completions.d/spc.fish"),
    ] {
        let installed = format!("/srv/share/{file}");
        let checked = host.run(&[shell, "-n", &installed])?.ok()?;
        ensure!(checked.error_text().is_empty(), "{checked}");
        let printed = spc.exec(&["spc", "completions", shell])?.ok()?.stdout;
        ensure!(
            printed == host.read(&installed)?,
            "{shell}: other completions than spc prints"
        );
    }
    // Completions that the shell offers.
    let bash = |words: &[&str]| {
        let [.., before, last] = words else {
            bail!("no words");
        };
        let script = format!(
            "source /srv/share/bash-completion/completions/spc; COMP_WORDS=({}) COMP_CWORD={}; \
             _spc spc '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1
        );
        Ok(host.run(&["bash", "-c", &script])?.ok()?.text())
    };
    ensure!(bash(&["spc", "exp"])?.trim() == "explain");
    ensure!(bash(&["spc", "mount", "-t", "glu"])?.trim() == "glusterfs");
    let all = bash(&["spc", ""])?;
    ensure!(
        all.contains("umount") && !all.contains("first-data"),
        "{all}"
    );
    let fish = |line: &str| {
        let script =
            format!("source /srv/share/fish/vendor_completions.d/spc.fish; complete -C '{line}'");
        Ok::<_, anyhow::Error>(host.run(&["fish", "-c", &script])?.ok()?.text())
    };
    let offered = fish("spc exp")?;
    ensure!(offered.starts_with("explain\t"), "{offered}");
    let offered = fish("spc mount -t glu")?;
    ensure!(offered.trim_end() == "glusterfs", "{offered}");
    let script = "fpath=(/srv/share/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D; echo $_comps[spc]";
    let known = host.run(&["zsh", "-c", script])?.ok()?.text();
    ensure!(known.trim() == "_spc", "{known}");
    Ok(())
}

#[test]
fn completions_load_in_their_shells() {
    with_lab(completions);
}
