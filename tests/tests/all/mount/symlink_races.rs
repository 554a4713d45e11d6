//! A user of the host swaps directories of the target's path while spc mounts there.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use lab::{Libc, program};

use crate::support::{Spc, with_container};

/// Mounts repeatedly while another process exchanges the names `place` and `other`. Each mount must
/// end on the target or nowhere.
fn contest(spc: &Spc<'_>, mount: &[&str], target: &str, place: &str, other: &str) -> Result<()> {
    let before = spc.traces()?;
    let (mut mounted, mut refused) = (0, 0);
    for round in 0.. {
        let swap = spc.host.spawn(&["/opt/swap", place, other])?;
        let output = spc.exec(&[&["spc", "mount"], mount, &[target]].concat())?;
        drop(swap);
        // If the last exchange went through, the directory has to go back to its name.
        let back = format!(
            "[ ! -L {place} ] || (mv {place} {place}.x && mv {other} {place} && mv {place}.x {other})"
        );
        spc.host.sh(&back)?.ok()?;
        let new: Vec<_> = spc
            .host
            .mountinfo()?
            .into_iter()
            .filter(|mount| !before.0.contains(mount))
            .collect();
        if output.success() {
            ensure!(
                new.len() == 1 && new[0].target == Path::new(target),
                "{new:?}\n{output}"
            );
            spc.umount(target)?;
            mounted += 1;
        } else {
            ensure!(new.is_empty(), "{new:?}\n{output}");
            let output = output.code(32)?;
            ensure!(output.error_text().contains("hint: "), "{output}");
            refused += 1;
        }
        ensure!(
            round < 200,
            "nothing to see: {mounted} mounted, {refused} refused"
        );
        if round >= 11 && mounted > 0 && refused > 0 {
            break;
        }
    }
    let after = spc.traces()?;
    ensure!(after == before, "left: {after:#?}\nwas: {before:#?}");
    eprintln!("{mount:?} on {target}: {mounted} mounted, {refused} refused");
    Ok(())
}

#[test]
fn swapped_directories_never_redirect_a_mount() {
    with_container(|spc| {
        let host = &spc.host;
        host.copy_in(program("swap", Libc::Gnu, &["-static"])?, "/opt/swap")?;
        spc.put(
            "/usr/local/sbin/mount.ramfs",
            &fs::read(program("helper", Libc::Gnu, &["-static"])?)?,
        )?;
        host.sh("mkdir -p /victim/spot /srv/user/spot /srv/user/way/spot /srv/user/one /srv/user/two
            ln -s /victim /srv/user/link; ln -s /victim/spot /srv/user/last; chown -hR 65534 /srv/user")?.ok()?;
        let tmpfs = ["-t", "tmpfs", "tmpfs"];
        let bindfs = ["-t", "fuse.bindfs", "/host/opt"];
        let ramfs = ["-t", "ramfs", "ramfs"];
        // The target becomes a link; then a directory on its path does; then two directories swap.
        for mount in [tmpfs, bindfs, ramfs] {
            contest(
                spc,
                &mount,
                "/srv/user/spot",
                "/srv/user/spot",
                "/srv/user/last",
            )?;
            contest(
                spc,
                &mount,
                "/srv/user/way/spot",
                "/srv/user/way",
                "/srv/user/link",
            )?;
            contest(
                spc,
                &mount,
                "/srv/user/one",
                "/srv/user/one",
                "/srv/user/two",
            )?;
        }
        Ok(())
    });
}
