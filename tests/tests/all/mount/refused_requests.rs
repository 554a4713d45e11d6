//! Requests that must fail: one clear error with a hint, the right exit code, and nothing left
//! behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{HostOptions, Lab};

use crate::support::{Spc, with_gluster, with_lab};

fn start(lab: &Lab) -> Result<Spc<'_>> {
    Spc::privileged(lab)
}

#[test]
fn missing_servers_and_volumes_are_named() {
    with_gluster(|lab, cluster| {
        let spc = start(lab)?;
        let idle = lab.host(HostOptions::default())?;
        let node = cluster.nodes()[0].host().address();
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        for (source, expected) in [
            // An unused address, an unknown name, and a closed port.
            (
                "192.0.2.250:/vol".to_owned(),
                "disconnected from remote-host: 192.0.2.250",
            ),
            (
                "no-such-host:/vol".to_owned(),
                "DNS resolution failed on host no-such-host",
            ),
            (
                format!("{}:/vol", idle.address()),
                "disconnected from remote-host",
            ),
            (
                format!("{node}:/no-such-volume"),
                "failed to fetch volume file (key:/no-such-volume)",
            ),
            // GlusterFS mounts first; its daemon then unmounts when it cannot get the volume.
            (
                format!("{node}:/vol/no-such-directory"),
                r#"subdirectory for mount "/no-such-directory" is not found"#,
            ),
        ] {
            let mount = ["spc", "mount", "-t", "glusterfs", &source, "/mnt/data"];
            let output = spc.refused(&mount, 32, &[expected])?;
            ensure!(output.elapsed < Duration::from_secs(15), "{output}");
            let error = output.error_text();
            // The error is for people: no source files, no dates, no internal path of the mount.
            ensure!(error.lines().count() <= 6, "{output}");
            for noise in ["MSGID", ".c:", "/spc/targets", "[20"] {
                ensure!(!error.contains(noise), "{noise}: {output}");
            }
        }
        for source in ["vol", "server:", ":/vol"] {
            let mount = ["-t", "glusterfs", source, "/mnt/data"];
            spc.refused_mount(&mount, 1, &["bad source", "SERVER:/VOLUME"])?;
        }
        Ok(())
    });
}

#[test]
fn a_helper_that_misbehaves_leaves_nothing() {
    with_lab(|lab| {
        let spc = start(lab)?;
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let mount = |fstype| {
            [
                "spc",
                "mount",
                "--timeout",
                "3",
                "-t",
                fstype,
                "source",
                "/mnt/data",
            ]
        };
        spc.refused(&mount("nosuch"), 32, &["no program mount.nosuch"])?;
        spc.refused(&mount("fuse.nosuch"), 32, &["no program nosuch"])?;
        for (source, hint) in [
            ("source", "add -t TYPE; known: glusterfs"),
            ("a,b:/vol", "may be of type glusterfs or ceph"),
        ] {
            spc.refused_mount(&[source, "/mnt/data"], 1, &[hint])?;
        }
        for (script, expected) in [
            (
                "#!/bin/sh\nexit 0",
                &["reported success", "nothing is mounted on /mnt/data"][..],
            ),
            (
                "#!/bin/sh\necho so it ended >&2; exit 7",
                &["exit status 7", "  so it ended"],
            ),
            ("#!/bin/sh\nkill -SEGV $$", &["killed by signal 11"]),
            (
                "#!/no/such/shell\n",
                &["interpreter is missing: /no/such/shell"],
            ),
            ("not a program", &["neither an ELF program nor a script"]),
            // A helper that fails after its mount: spc removes the mount.
            (
                "#!/bin/sh\nmount -i -t tmpfs half \"$2\" || exit 9; exit 5",
                &["exit status 5"],
            ),
            (
                "#!/bin/sh\nmount -i -t tmpfs half \"$2\"; kill -KILL $$",
                &["killed by signal 9"],
            ),
            (
                "#!/bin/sh\nexec mount -i -t tmpfs wrong \"$2\"",
                &["the host's mount table shows type tmpfs", "bad"],
            ),
        ] {
            spc.put("/usr/local/sbin/mount.bad", script.as_bytes())?;
            spc.refused(&mount("bad"), 32, expected)?;
        }
        // The helper and its child both hang and ignore SIGTERM.
        let hang = "#!/bin/sh\ntrap '' TERM\nmount -i -t tmpfs half \"$2\"\nsetsid sleep 1000 & sleep 1000";
        spc.put("/usr/local/sbin/mount.bad", hang.as_bytes())?;
        let output = spc.refused(&mount("bad"), 32, &["killed by spc after 3 s", "--timeout"])?;
        ensure!(output.elapsed < Duration::from_secs(10), "{output}");
        ensure!(
            !spc.sh("pgrep sleep || pidof sleep")?.success(),
            "a child of the helper is left"
        );
        Ok(())
    });
}

/// Checks that spc takes the type from the source, which the helper that runs shows.
#[test]
fn a_type_is_derived_from_the_source() {
    with_lab(|lab| {
        let spc = start(lab)?;
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        // The kernel decides which of the two clients CephFS gets.
        let ceph = &["mount.ceph", "ceph-fuse"][..];
        for (source, programs) in [
            ("host:/path", &["mount.nfs"][..]),
            ("[2001:db8::1]:/x", &["mount.nfs"]),
            ("//host/share", &["mount.cifs"]),
            ("me@host:/dir", &["sshfs"]),
            ("mon:6789:/", ceph),
            ("me@.cephfs=/", ceph),
        ] {
            let program = programs[0];
            let helper = format!("#!/bin/sh\necho 'this is {program}' >&2; exit 1");
            for program in programs {
                spc.put(&format!("/usr/local/sbin/{program}"), helper.as_bytes())?;
            }
            let expected = format!("this is {program}");
            let doubt = "for another type, add -t glusterfs or -t ceph";
            let expected = match program {
                "mount.nfs" => vec![&*expected, doubt],
                _ => vec![&*expected],
            };
            for mount in [&["spc", "mount"][..], &["spc", "mount", "-t", "auto"]] {
                let mount = [mount, &[source, "/mnt/data"]].concat();
                let output = spc.refused(&mount, 32, &expected)?;
                let doubted = output.error_text().contains(doubt);
                ensure!(doubted == (program == "mount.nfs"), "{output}");
            }
            let explain = ["spc", "explain", source, "/mnt/data"];
            let explained = spc.exec(&explain)?.ok()?.text();
            ensure!(
                explained.contains("from the source")
                    || explained.contains("by the form of the source"),
                "{explained}"
            );
        }
        let mount = ["-t", "nfs", "host:/path", "/mnt/data"];
        let output = spc.refused_mount(&mount, 32, &["this is mount.nfs"])?;
        ensure!(!output.error_text().contains("add -t"), "{output}");
        Ok(())
    });
}

#[test]
fn bad_targets_are_refused_and_good_ones_are_not() {
    with_lab(|lab| {
        let spc = start(lab)?;
        spc.host.sh("mkdir -p /mnt/real /mnt/other /mnt/foreign /srv/user && touch /mnt/file && chmod 1777 /srv
            ln -s nowhere /mnt/dangling; ln -s loop /mnt/loop; ln -s real /mnt/link; ln -s file /mnt/to-file
            ln -s /mnt/real /tmp/link; ln -s /mnt/real /srv/user/link; ln -s /mnt/real /srv/root-link
            chown -h 65534 /tmp/link /srv/user; mount -t tmpfs foreign /mnt/foreign")?.ok()?;
        let mount = |target| ["spc", "mount", "-t", "tmpfs", "scratch", target];
        for (target, code, expected) in [
            (
                "/mnt/missing",
                32,
                &["/mnt/missing: no such directory", "x-mount.mkdir"][..],
            ),
            ("/mnt/dangling", 32, &["/mnt/dangling: no such directory"]),
            ("/mnt/loop", 32, &["Too many levels of symbolic links"]),
            ("/mnt/file", 32, &["/mnt/file is not a directory"]),
            ("/mnt/to-file", 32, &["/mnt/file is not a directory"]),
            ("/mnt/file/below", 32, &["/mnt/file is not a directory"]),
            (
                "/tmp/link",
                32,
                &["/tmp/link is a symbolic link that a user other than root controls"],
            ),
            // Root made the link, but another user owns its directory and can replace it.
            (
                "/srv/user/link",
                32,
                &["/srv/user/link is a symbolic link that a user other than root controls"],
            ),
            ("/", 32, &["root of the host"]),
            ("/mnt/..", 32, &["root of the host"]),
            (
                "/etc",
                1,
                &["hide the system's own files", "--over-system-directory"],
            ),
            ("/mnt/../etc", 1, &["hide the system's own files"]),
            ("/host/etc", 1, &["bad target /etc"]),
            ("/proc", 1, &["hide the system's own files"]),
            (
                "/mnt/foreign",
                32,
                &["/mnt/foreign is already mounted: foreign (tmpfs)"],
            ),
        ] {
            spc.refused(&mount(target), code, expected)?;
        }
        // A failed mount removes the directories that it created.
        let making = ["-t", "nosuch", "-o", "x-mount.mkdir", "x", "/mnt/new/dir"];
        spc.refused_mount(&making, 32, &["mount.nosuch"])?;
        let making = [
            "-t",
            "tmpfs",
            "-o",
            "x-mount.mkdir,bad=option",
            "x",
            "/mnt/new/dir",
        ];
        spc.refused_mount(&making, 32, &["bad"])?;
        ensure!(
            !spc.host.sh("test -e /mnt/new")?.success(),
            "/mnt/new is left behind"
        );
        // A successful mount keeps them, as mount(8) does.
        let options = [
            "-t",
            "tmpfs",
            "-o",
            "x-mount.mkdir=0700",
            "x",
            "/mnt/new/dir",
        ];
        spc.mount(&options)?;
        ensure!(spc.on("/mnt/new/dir")?.len() == 1);
        spc.umount("/mnt/new/dir")?;
        ensure!(spc.host.sh("stat -c %a /mnt/new/dir")?.ok()?.text() == "700");

        // Links that root made work, and `spc ls` shows both names.
        for link in ["/mnt/link", "/srv/root-link"] {
            spc.exec(&mount(link))?.ok()?;
            ensure!(spc.on("/mnt/real")?.len() == 1);
            ensure!(spc.record("/mnt/real")?["written"] == link);
            spc.umount(link)?;
            spc.is_clean()?;
        }
        // With `--over-system-directory`, a mount may hide system files.
        let insist = ["--over-system-directory", "-t", "tmpfs", "scratch", "/etc"];
        let etc = ["spc", "umount", "/etc"];
        spc.mount(&insist)?;
        ensure!(spc.on("/etc")?.len() == 1);
        spc.exec(&etc)?.ok()?;

        // The same request again is a success. A different request is an error that names the
        // present mount.
        spc.exec(&mount("/mnt/real"))?.ok()?;
        let before = spc.traces()?;
        for same in ["/mnt/real", "/mnt/link", "/host/mnt/real/."] {
            spc.exec(&mount(same))?.ok()?;
            ensure!(spc.traces()? == before, "{same}");
        }
        let already = "/mnt/real is already mounted: scratch (tmpfs)";
        spc.refused_mount(&["-t", "tmpfs", "another", "/mnt/real"], 32, &[already])?;
        spc.refused_mount(
            &["-t", "tmpfs", "-o", "ro", "scratch", "/mnt/link"],
            32,
            &[already],
        )?;
        spc.refused_mount(&["--bind", "/mnt/other", "/mnt/real"], 32, &[already])?;
        spc.umount("/mnt/real")?;

        spc.refused(
            &["spc", "umount", "/mnt/real"],
            32,
            &["/mnt/real: not mounted"],
        )?;
        spc.refused(
            &["spc", "umount", "/mnt/missing"],
            32,
            &["no such directory"],
        )?;
        spc.refused(
            &["spc", "umount", "/mnt/foreign"],
            32,
            &["not mounted by spc: foreign (tmpfs)"],
        )?;
        spc.is_clean()
    });
}
