//! `mount.TYPE` and `umount.TYPE`, as mount(8) and umount(8) of a host run them.

use anyhow::{Result, ensure};
use lab::{AnyHost, Output};

use crate::kubernetes::kubelet::install;
use crate::support::{Container, Spc, with_gluster};

/// Runs an installed helper of the host with these arguments, by its name or by another path.
fn helper<H: AnyHost>(spc: &Container<H>, name: &str, words: &[&str]) -> Result<Output> {
    let path = format!("/usr/sbin/{name}");
    let link = r#"[ -e "$1" ] || ln -s /var/lib/spc/current/usr/bin/spc "$1""#;
    spc.host.run(&["sh", "-c", link, "link", &path])?.ok()?;
    spc.host.run(&[&[path.as_str()], words].concat())
}

#[test]
fn the_arguments_and_exit_codes_of_mount() {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let (host, target) = (&spc.host, "/mnt/data");
        host.run(&["mkdir", "-p", target])?.ok()?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let source = source.as_str();

        // libmount passes source and target, flags, options last.
        helper(
            &spc,
            "mount.glusterfs",
            &[source, target, "-n", "-o", "rw,nodev"],
        )?
        .ok()?;
        ensure!(spc.on(target)?.len() == 1 && spc.on(target)?[0].options.contains("nodev"));
        host.write("/mnt/data/helper", b"written")?;
        // The same request again is the same mount.
        helper(
            &spc,
            "mount.glusterfs",
            &[source, target, "-n", "-o", "rw,nodev"],
        )?
        .ok()?;
        ensure!(spc.on(target)?.len() == 1);
        helper(&spc, "umount.fuse.glusterfs", &[target])?.ok()?;
        ensure!(spc.on(target)?.is_empty());
        spc.is_clean()?;

        // A part of the type as the name, with the whole type in -t; a relative target; verbose.
        spc.sh("mkdir -p /srv/source && echo through >/srv/source/file")?
            .ok()?;
        let said = helper(
            &spc,
            "mount.spc",
            &[source, target, "-v", "-t", "spc.glusterfs"],
        )?
        .ok()?;
        ensure!(said.text().contains("mounted"), "{said}");
        let busy = host.spawn(&["sh", "-c", "cd /mnt/data && sleep 50"])?;
        let inside = "ls -l /proc/[0-9]*/cwd 2>/dev/null | grep -q /mnt/data";
        crate::support::until("it is busy", || Ok(host.sh(inside)?.success()))?;
        let failed = helper(&spc, "umount.fuse", &[target, "-t", "fuse.glusterfs"])?.code(32)?;
        ensure!(
            failed
                .error_text()
                .starts_with("umount.fuse: cannot unmount /mnt/data: "),
            "{failed}"
        );
        helper(&spc, "umount.fuse", &["-l", target])?.ok()?;
        drop(busy);
        crate::support::until("the daemon ends", || Ok(spc.is_clean().is_ok()))?;

        // Every step except the mount.
        helper(&spc, "mount.glusterfs", &[source, target, "-f"])?.ok()?;
        ensure!(spc.on(target)?.is_empty());
        let same = ["-N", "/proc/1/ns/mnt"];
        helper(
            &spc,
            "mount.glusterfs",
            &[&[source, target], &same[..]].concat(),
        )?
        .ok()?;
        helper(&spc, "umount.glusterfs", &[target])?.ok()?;
        let pid = spc.pid()?;
        let words = [source, target, "-N", &pid];
        let refused = helper(&spc, "mount.glusterfs", &words)?.code(1)?;
        ensure!(
            refused.error_text().starts_with("mount.glusterfs: bad -N"),
            "{refused}"
        );

        for (name, words, code, says) in [
            ("mount.glusterfs", &[source][..], 1, "Usage"),
            ("mount.glusterfs", &[source, target, "-z"], 1, "-z"),
            (
                "mount.glusterfs",
                &["nocolon", target],
                1,
                "mount.glusterfs: bad source",
            ),
            (
                "mount.glusterfs",
                &[source, "/mnt/nosuch"],
                32,
                "no such directory",
            ),
            ("mount.fuse", &["source", target], 1, "no FUSE program"),
            ("umount.glusterfs", &[target], 32, "not mounted"),
            (
                "umount.glusterfs",
                &["/mnt/nosuch"],
                32,
                "no such directory",
            ),
        ] {
            let failed = helper(&spc, name, words)?.code(code)?;
            ensure!(
                failed.error_text().contains(says) && failed.stdout.is_empty(),
                "{failed}"
            );
        }

        // umount.TYPE also unmounts what another program mounted: the type has no other helper.
        host.run(&["mount", "-t", "tmpfs", "other", target])?.ok()?;
        helper(&spc, "umount.glusterfs", &[target])?.ok()?;
        ensure!(spc.on(target)?.is_empty());
        spc.is_clean()
    });
}
