//! `spc doctor --kind`: what is taken away is missed, by its name, with a hint; and what is not needed is not.

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Propagation};
use serde_json::Value;

use crate::support::{FULL, LEAST, Spc, with_lab};

/// The failed checks of a command, each with its hint.
fn missed(spc: &Spc<'_>, kind: &str) -> Result<Vec<(String, String)>> {
    let output = spc.exec(&["spc", "doctor", "--json", "--kind", kind])?;
    let checks: Vec<Value> =
        serde_json::from_str(&output.text()).with_context(|| format!("not JSON: {output}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let failed = checks.iter().filter(|check| check["ok"] == false);
    let failed: Vec<_> = failed
        .map(|check| {
            let what = format!("{}: {}", text(&check["name"]), text(&check["found"]));
            (what, text(&check["hint"]))
        })
        .collect();
    ensure!(output.success() == failed.is_empty(), "{output}");
    ensure!(
        failed.iter().all(|(_, hint)| !hint.is_empty()),
        "no hint: {failed:?}"
    );
    for (what, hint) in &failed {
        eprintln!("{what}\n     hint: {hint}");
    }
    Ok(failed)
}

/// Exactly these are missed: what the check is called and says, and what the hint says.
fn misses(spc: &Spc<'_>, kind: &str, expected: &[(&str, &str)]) -> Result<()> {
    let missed = missed(spc, kind)?;
    let named = |(what, hint): &(&str, &str)| {
        missed
            .iter()
            .any(|(w, h)| w.starts_with(what) && h.contains(hint))
    };
    ensure!(
        missed.len() == expected.len() && expected.iter().all(named),
        "{kind}: expected {expected:?}, not {missed:?}"
    );
    Ok(())
}

#[test]
fn each_kind_tells_what_it_misses() {
    with_lab(|lab| {
        let spc = Spc::start(
            lab,
            Propagation::Shared,
            Engine::Docker,
            Base::Trixie,
            &FULL,
        )?;
        // The kernel that all hosts of the lab share has fuse, overlay, ext4 and xfs, and modules of nothing else.
        for kind in [
            "glusterfs",
            "gluster",
            "fuse.bindfs",
            "sshfs",
            "fuse",
            "tmpfs",
            "xfs",
        ] {
            misses(&spc, kind, &[])?;
        }
        let release = spc.host.run(&["uname", "-r"])?.ok()?.text();
        let release = release.trim();
        for (kind, module) in [("cifs", "cifs"), ("smb", "cifs"), ("ceph", "ceph")] {
            let found = format!("{kind} module: no module {module} for Linux {release}");
            misses(&spc, kind, &[(&found, "install the modules")])?;
        }
        spc.sh("rm $(command -v mount.glusterfs) /usr/sbin/mount.cifs /usr/bin/sshfs /usr/sbin/rpc.statd")?.ok()?;
        misses(
            &spc,
            "glusterfs",
            &[(
                "glusterfs program: this container has no mount.glusterfs",
                "glusterfs-client",
            )],
        )?;
        misses(
            &spc,
            "sshfs",
            &[(
                "sshfs program: this container has no sshfs",
                "apt-get install sshfs",
            )],
        )?;
        misses(
            &spc,
            "fuse.nosuch",
            &[(
                "fuse.nosuch program: this container has no nosuch",
                "nosuch",
            )],
        )?;
        misses(
            &spc,
            "cifs",
            &[("cifs program", "cifs-utils"), ("cifs module", "modules")],
        )?;
        let nfs = missed(&spc, "nfs")?;
        ensure!(
            nfs.iter()
                .any(|(what, _)| what == "nfs program: this container has no rpc.statd"),
            "{nfs:?}"
        );
        misses(&spc, "xfs", &[])?;
        // A module that is in the host's files, but whose program is not in the container.
        let modules = format!("/lib/modules/{release}");
        spc.host.write(
            format!("{modules}/modules.dep"),
            b"kernel/fs/ceph/ceph.ko.xz: kernel/net/ceph/libceph.ko.xz\n",
        )?;
        spc.host.write(
            format!("{modules}/modules.builtin"),
            b"kernel/fs/smb/client/cifs.ko\n",
        )?;
        misses(&spc, "cifs", &[("cifs program", "cifs-utils")])?;
        misses(&spc, "ceph", &[])?;
        let seen = spc.exec(&["spc", "doctor", "--kind", "ceph"])?.ok()?.text();
        let loader = "ceph is loaded when it is needed, by /usr/sbin/modprobe from /host/proc/1/root/lib/modules";
        ensure!(seen.contains(loader), "{seen}");
        // The host's own would do it.
        spc.host.sh("mkdir -p /sbin && printf '#!/bin/sh\\nexit 1\\n' >/sbin/modprobe && chmod +x /sbin/modprobe")?.ok()?;
        let seen = spc.exec(&["spc", "doctor", "--kind", "ceph"])?.ok()?.text();
        ensure!(
            seen.contains("ceph is loaded by the host when it is needed"),
            "{seen}"
        );
        spc.host.sh("rm /sbin/modprobe")?.ok()?;
        spc.sh("rm $(command -v modprobe) /usr/bin/modprobe /bin/modprobe; hash -r; ! command -v modprobe")?.ok()?;
        misses(&spc, "ceph", &[("ceph module", "install kmod")])?;

        // A name that is none.
        let output = spc.exec(&["spc", "doctor", "--kind", "nosuch"])?.code(1)?;
        ensure!(
            output.error_text().contains("hint: known: glusterfs, nfs"),
            "{output}"
        );
        Ok(())
    });
}

#[test]
fn the_least_container_is_told_what_more_a_kind_needs() {
    with_lab(|lab| {
        let without =
            |part: &str| -> Vec<&str> { LEAST.into_iter().filter(|word| *word != part).collect() };
        let spc = Spc::start(
            lab,
            Propagation::Shared,
            Engine::Docker,
            Base::Trixie,
            &without("--device=/dev/fuse"),
        )?;
        misses(&spc, "tmpfs", &[])?;
        misses(
            &spc,
            "fuse.bindfs",
            &[("fuse.bindfs device", "--device=/dev/fuse")],
        )?;
        let release = spc.host.run(&["uname", "-r"])?.ok()?.text();
        let dep = b"kernel/fs/ceph/ceph.ko:\nkernel/drivers/scsi/iscsi_tcp.ko:\nkernel/drivers/scsi/sd_mod.ko:\n";
        spc.host
            .write(format!("/lib/modules/{}/modules.dep", release.trim()), dep)?;
        misses(&spc, "ceph", &[("ceph module", "--cap-add=SYS_MODULE")])?;
        let iscsi = missed(&spc, "iscsi")?;
        for (check, hint) in [
            ("iscsi module: no module iscsi_tcp", "--cap-add=SYS_MODULE"),
            ("iscsi /sys", "-v /sys:/sys"),
            ("iscsi /dev", "-v /dev:/dev"),
        ] {
            ensure!(
                iscsi
                    .iter()
                    .any(|(what, h)| what.starts_with(check) && h.contains(hint)),
                "{check}: {iscsi:?}"
            );
        }
        spc.remove()?;
        spc.run(Base::Trixie, &without("--net=host"))?.ok()?;
        let ceph = missed(&spc, "ceph")?;
        ensure!(ceph.iter().any(|(what, hint)| what.starts_with("ceph network") && hint.contains("--net=host")), "{ceph:?}");
        Ok(())
    });
}

#[test]
fn a_kernel_without_the_file_system_is_named() {
    with_lab(|lab| {
        let spc = Spc::usual(lab)?;
        spc.host.run(&["mkdir", "-p", "/mnt/data"])?.ok()?;
        let release = spc.host.run(&["uname", "-r"])?.ok()?.text();
        let release = release.trim();
        let modules = format!("/lib/modules/{release}");
        let mount = [
            "spc",
            "mount",
            "--timeout",
            "20",
            "-t",
            "cifs",
            "-o",
            "guest",
            "//192.0.2.250/share",
            "/mnt/data",
        ];
        let lacks = format!(
            "the host's kernel has no file system cifs, and module cifs for Linux {release} cannot be loaded"
        );
        let nowhere = format!("{lacks}: there is no {modules} on the host");
        spc.refused(
            &mount,
            32,
            &[&nowhere, "hint: install the modules of Linux"],
        )?;
        // The files are there, and the module is not among them: modprobe says so.
        spc.host.write(format!("{modules}/modules.dep"), b"")?;
        let tried = format!(
            "{lacks}: /usr/sbin/modprobe -d /host/proc/1/root cifs: exit status 1: modprobe: FATAL: Module cifs not found"
        );
        spc.refused(&mount, 32, &[&tried, "hint: install the modules of Linux"])?;
        // A mount that does not come to grief for want of it says nothing of it.
        spc.put(
            "/usr/local/sbin/mount.cifs",
            b"#!/bin/sh\nmount -i -t tmpfs none \"$2\"",
        )?;
        let wrong = spc.refused(&mount, 32, &["the host shows tmpfs"])?;
        ensure!(
            wrong.error_text().contains("cifs cannot be loaded"),
            "{wrong}"
        );
        spc.remove()?;
        spc.run(Base::Trixie, &LEAST)?.ok()?;
        spc.refused(
            &mount,
            32,
            &[
                "capability CAP_SYS_MODULE is missing",
                "on the host, try: modprobe cifs",
                "--cap-add=SYS_MODULE",
            ],
        )?;
        // One that it has needs no files.
        spc.exec(&["spc", "mount", "-t", "tmpfs", "x", "/mnt/data"])?
            .ok()?;
        spc.exec(&["spc", "umount", "/mnt/data"])?.ok()?;
        spc.is_clean()
    });
}
