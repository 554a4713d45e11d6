//! Hosts and containers with a defect: one clear error with a hint, and nothing left behind.

use anyhow::ensure;
use lab::{Base, Engine, Propagation};

use crate::support::{Spc, with_container, with_lab};

const TMPFS: [&str; 6] = ["spc", "mount", "-t", "tmpfs", "scratch", "/mnt/data"];
const BINDFS: [&str; 6] = [
    "spc",
    "mount",
    "-t",
    "fuse.bindfs",
    "/host/srv",
    "/mnt/data",
];

#[test]
fn a_missing_capability_is_named_unless_unneeded() {
    with_container(|spc| {
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let all = spc
            .sh("setpriv --dump | sed -n 's/^Capability bounding set: //p'")?
            .ok()?
            .text();
        ensure!(all.split(',').count() > 30, "{all}");
        for capability in all.split(',') {
            let less = format!("-{capability}");
            let without = ["setpriv", "--bounding-set", &less, "--inh-caps", &less];
            let name = capability.to_uppercase();
            if ["SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"].contains(&name.as_str()) {
                let expected = [
                    &*format!("CAP_{name} is missing"),
                    &format!("--cap-add={name}"),
                ];
                spc.refused(&[&without[..], &TMPFS].concat(), 2, &expected)?;
            } else {
                for mount in [TMPFS, BINDFS] {
                    spc.exec(&[&without[..], &mount].concat())?.ok()?;
                    spc.exec(&[&without[..], &["spc", "umount", "/mnt/data"]].concat())?
                        .ok()?;
                }
            }
        }
        spc.is_clean()?;
        let nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        spc.refused(&[&nobody[..], &TMPFS].concat(), 1, &["as root"])?;
        Ok(())
    });
}

#[test]
fn a_container_that_cannot_find_its_host_is_refused() {
    with_lab(|lab| {
        let bare = ["--privileged", "--net=host"];
        let spc = Spc::start(
            lab,
            Propagation::Shared,
            Engine::Docker,
            Base::Trixie,
            &bare,
        )?;
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let own = "/proc/1/ns/mnt: this is the container's own mount namespace";
        spc.refused(&TMPFS, 2, &[own, "--pid=host"])?;
        spc.put("/etc/spc/shim.conf", b"namespace /host/proc/1/ns/mnt\n")?;
        spc.refused(
            &TMPFS,
            2,
            &["/host/proc/1/ns/mnt: No such file", "--pid=host"],
        )?;
        let hidden = format!("mount -i -t tmpfs hidden /proc && exec {}", TMPFS.join(" "));
        let hidden = ["unshare", "--mount", "sh", "-c", &hidden];
        spc.refused(&hidden, 2, &["/proc/self/ns/mnt", "a procfs"])?;

        // spc started on the host itself, outside of a container.
        let program = format!("/proc/{}/root/usr/bin/spc", spc.pid()?);
        let mount = spc
            .host
            .run(&[&[&*program], &TMPFS[1..]].concat())?
            .code(2)?;
        let expected = "spc is not installed on this host";
        ensure!(mount.error_text().contains(expected), "{mount}");
        ensure!(spc.on("/mnt/data")?.is_empty());
        spc.is_clean()
    });
}

#[test]
fn broken_settings_are_refused() {
    with_container(|spc| {
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let file = "/etc/spc/shim.conf";
        for (text, expected) in [
            ("# fine\nfrobnicate yes\n", "/etc/spc/shim.conf line 2"),
            ("host relative/path\n", "/etc/spc/shim.conf line 1"),
        ] {
            spc.put(file, text.as_bytes())?;
            for mount in [TMPFS, BINDFS] {
                spc.refused(&mount, 2, &["broken settings", expected])?;
            }
        }
        spc.sh(&format!("rm {file} && mkdir {file}"))?.ok()?;
        spc.refused(
            &TMPFS,
            2,
            &["cannot read the settings /etc/spc/shim.conf: Is a directory"],
        )?;
        spc.sh(&format!("rmdir {file}"))?.ok()?;
        let environment = [&["env", "SPC_NAMESPACE=relative"], &TMPFS[..]].concat();
        spc.refused(&environment, 2, &["broken settings: environment"])?;
        // Without the file, the built-in settings apply.
        spc.life(
            &BINDFS[2..5],
            "/mnt/data",
            ["fuse", "/host/srv"],
            |_| Ok(()),
        )?;

        spc.sh("mount --bind /spc/targets /spc/targets && mount -o remount,bind,ro /spc/targets")?
            .ok()?;
        let within = [&BINDFS[..2], &["-o", "x-spc.container"], &BINDFS[2..]].concat();
        spc.refused(
            &within,
            2,
            &[
                "/spc/targets",
                "Read-only file system",
                "--tmpfs /spc/targets",
            ],
        )?;
        Ok(())
    });
}

#[test]
fn a_full_disk_refuses_mounts_and_allows_unmounts() {
    const FILL: &str = "dd if=/dev/zero of=/run/spc/fill bs=1k 2>/dev/null; true";
    const EMPTY: &str = "rm -f /run/spc/fill";
    with_container(|spc| {
        let host = &spc.host;
        host.sh("mkdir -p /mnt/data /run/spc && mount -t tmpfs -o size=16k small /run/spc")?
            .ok()?;
        spc.life(&TMPFS[2..5], "/mnt/data", ["tmpfs", "scratch"], |_| Ok(()))?;
        let full = "No space left on device";
        host.sh(FILL)?.ok()?;
        for mount in [TMPFS, BINDFS] {
            spc.refused(&mount, 2, &[full, "below /run on the host"])?;
        }
        host.sh(EMPTY)?.ok()?;

        // The disk becomes full while the helper runs.
        let helper =
            format!("#!/bin/sh\nmount -i -t ramfs x \"$2\" && chroot /host sh -c '{FILL}'");
        spc.put("/usr/local/sbin/mount.ramfs", helper.as_bytes())?;
        let mount = ["-t", "ramfs", "x", "/mnt/data"];
        spc.refused_mount(&mount, 2, &[full])?;
        ensure!(
            !host
                .sh("dd if=/dev/zero of=/run/spc/more bs=1k count=8")?
                .success(),
            "the disk was not full"
        );
        host.sh(EMPTY)?.ok()?;

        // An unmount works on a full disk.
        host.sh("rm -f /run/spc/more")?.ok()?;
        let full = |_: &_| host.sh(FILL)?.ok().map(drop);
        spc.life(&TMPFS[2..5], "/mnt/data", ["tmpfs", "scratch"], full)
    });
}

#[test]
fn a_damaged_record_is_named_and_blocks_only_its_mount() {
    with_container(|spc| {
        let host = &spc.host;
        host.run(&["mkdir", "/mnt/data", "/mnt/other"])?.ok()?;
        let other = ["-t", "tmpfs", "other", "/mnt/other"];
        for damage in [
            "echo '{' >",
            "true >",
            "head -c 100 /dev/urandom >",
            "cp $(grep -l '\"/mnt/other\"' *.json)",
        ] {
            spc.exec(&TMPFS)?.ok()?;
            spc.mount(&other)?;
            let script = format!(
                "cd /run/spc/mounts && bad=$(grep -l '\"/mnt/data\"' *.json) && {damage} $bad && echo $bad"
            );
            let file = host.sh(&script)?.ok()?.text();
            let expected = [&*file, "on the host cannot be read", "then remove the file"];
            spc.refused(&TMPFS, 2, &expected)?;
            spc.refused(&["spc", "umount", "/mnt/data"], 2, &expected)?;
            let list = spc.exec(&["spc", "ls"])?.code(2)?;
            ensure!(
                list.text().contains("/mnt/other") && list.error_text().contains(&file),
                "{list}"
            );
            let all = spc.exec(&["spc", "umount", "--all"])?.code(64)?;
            ensure!(all.error_text().contains(&file), "{all}");
            ensure!(spc.on("/mnt/other")?.is_empty() && spc.on("/mnt/data")?.len() == 1);
            // The command that the hint names.
            host.sh(&format!("umount /mnt/data && rm -f /run/spc/mounts/{file}"))?
                .ok()?;
            spc.is_clean()?;
        }
        Ok(())
    });
}
