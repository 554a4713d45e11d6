//! `spc install` and `spc uninstall`: the files that they create on different hosts, and their
//! removal.

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Lab, Propagation};
use serde_json::Value;

use crate::support::{MINIMAL, PRIVILEGED, Spc, with_lab};

/// Command that lists the host's own file systems, with modes and targets of links. Leaves out
/// temporary files and those of the engine.
const LISTING: &str = "find / -xdev \
    \\( -path /run -o -path /tmp -o -path /etc/docker -o -path /root \\) -prune \
    -o -exec stat -c '%N %F %a' {} + | sort";

/// Lists the files of the host.
fn listing(spc: &Spc<'_>) -> Result<String> {
    Ok(spc.host.sh(LISTING)?.ok()?.text())
}

/// Checks that two listings are the same. The error shows the difference.
pub fn ensure_same(before: &str, after: &str) -> Result<()> {
    let only = |a: &str, b: &str| -> Vec<String> {
        let lines = a
            .lines()
            .filter(|line| !b.lines().any(|other| other == *line));
        lines.map(str::to_owned).collect()
    };
    let (gone, new) = (only(before, after), only(after, before));
    ensure!(
        gone.is_empty() && new.is_empty(),
        "gone: {gone:#?}\nnew: {new:#?}"
    );
    Ok(())
}

/// Runs `spc install` in the container.
fn install(spc: &Spc<'_>, arguments: &[&str]) -> Result<Value> {
    let words = [&["spc", "install", "--json"], arguments].concat();
    Ok(serde_json::from_slice(&spc.exec(&words)?.ok()?.stdout)?)
}

/// Boots a host with mount(8) of util-linux, and starts the container.
fn with_util_linux<'lab>(lab: &'lab Lab, arguments: &[&str]) -> Result<Spc<'lab>> {
    let (shared, docker) = (Propagation::Shared, Engine::Docker);
    let spc = Spc::start(lab, shared, docker, Base::Trixie, arguments)?;
    spc.host
        .sh("ln -sf ../libexec/util-linux/mount ../libexec/util-linux/umount /usr/bin/")?
        .ok()?;
    Ok(spc)
}

/// Checks that a name on the host leads to a program that runs there and has the container's
/// version.
fn ensure_works(spc: &Spc<'_>, name: &str) -> Result<()> {
    let version = spc.host.run(&[name, "--version"])?.ok()?.text();
    let own = spc.exec(&["spc", "--version"])?.ok()?.text();
    ensure!(version == own, "{version} is not {own}");
    Ok(())
}

/// Checks that a name on the host leads to spc.
fn ensure_leads_to_spc(spc: &Spc<'_>, name: &str) -> Result<()> {
    let there = spc.host.run(&["readlink", "-f", name])?.ok()?.text();
    ensure!(there.ends_with("bin/spc"), "{name}: {there}");
    spc.host.run(&["test", "-x", name])?.ok().map(drop)
}

#[test]
fn uninstall_removes_everything_that_install_created() {
    with_lab(|lab| {
        let spc = with_util_linux(lab, &MINIMAL)?;
        // The host has a mount.ceph of its own.
        let native =
            "cd /usr/sbin && printf '#!/bin/sh\\nexit 7\\n' >mount.ceph && chmod 755 mount.ceph";
        spc.host.sh(native)?.ok()?;
        let before = listing(&spc)?;
        let done = install(&spc, &[])?;
        ensure!(
            done["directory"] == "/usr/sbin" && done["add"].is_null(),
            "{done}"
        );
        ensure!(
            done["kept"] == serde_json::json!(["/usr/sbin/mount.ceph"]),
            "{done}"
        );
        ensure!(
            done["before"].is_null() && done["changed"] == true,
            "{done}"
        );
        spc.host.run(&["/usr/sbin/mount.ceph"])?.code(7)?;
        ensure_works(&spc, "spc")?;
        for name in [
            "mount.glusterfs",
            "mount.nfs",
            "umount.nfs4",
            "mount.cifs",
            "mount.fuse.sshfs",
            "mount.spc",
        ] {
            ensure_leads_to_spc(&spc, &format!("/sbin/{name}"))?;
        }
        ensure_leads_to_spc(&spc, "/var/lib/spc/mounter")?;
        // Other users gain nothing from the copied programs and directories.
        let find = "find /var/lib/spc ! -type l '(' -perm /6000 -o -perm /022 ')'";
        let found = spc.host.sh(find)?.ok()?.text();
        ensure!(found.is_empty(), "{found}");
        // A second install changes nothing; removed files come back.
        let installed = listing(&spc)?;
        let again = install(&spc, &[])?;
        ensure!(
            again["changed"] == false && again["before"] == again["version"],
            "{again}"
        );
        ensure_same(&installed, &listing(&spc)?)?;
        spc.host.run(&["rm", "/usr/sbin/mount.nfs"])?.ok()?;
        ensure!(install(&spc, &[])?["changed"] == true);
        ensure_same(&installed, &listing(&spc)?)?;
        // The installed commands need no container, and can uninstall themselves.
        spc.remove()?;
        spc.host.run(&["spc", "ls"])?.ok()?;
        spc.host.run(&["spc", "uninstall"])?.ok()?;
        ensure_same(&before, &listing(&spc)?)?;
        spc.host.run(&["test", "-e", "/run/spc"])?.code(1)?;
        let processes = spc
            .host
            .sh("ls -l /proc/[0-9]*/exe 2>/dev/null | grep /spc$")?;
        ensure!(processes.text().is_empty(), "{processes}");
        Ok(())
    });
}

#[test]
fn uninstall_waits_for_mounts_unless_told() {
    with_lab(|lab| {
        let spc = with_util_linux(lab, &PRIVILEGED)?;
        let before = listing(&spc)?;
        install(&spc, &[])?;
        spc.host
            .sh("mkdir -p /srv/from /srv/to && echo text >/srv/from/file")?
            .ok()?;
        let mount = [
            "spc",
            "mount",
            "-t",
            "fuse.bindfs",
            "/host/srv/from",
            "/srv/to",
        ];
        spc.exec(&mount)?.ok()?;
        let id = spc.on("/srv/to")?.first().context("not mounted")?.id;
        spc.refused(
            &["spc", "uninstall"],
            32,
            &["1 mounts need", "/srv/to", "--force"],
        )?;
        ensure_works(&spc, "spc")?;
        let text = spc.exec(&["spc", "uninstall", "--force"])?.ok()?.text();
        ensure!(text.contains("left "), "{text}");
        spc.host.run(&["test", "-e", "/usr/sbin/spc"])?.code(1)?;
        let on = spc.on("/srv/to")?;
        ensure!(on.len() == 1 && on[0].id == id, "{on:?}");
        ensure!(spc.host.read("/srv/to/file")? == b"text\n");
        spc.umount("/srv/to")?;
        // Without the last mount, uninstall leaves nothing.
        spc.exec(&["spc", "uninstall"])?.ok()?;
        spc.host.run(&["rm", "-r", "/srv/from", "/srv/to"])?.ok()?;
        ensure_same(&before, &listing(&spc)?)
    });
}

#[test]
fn an_older_version_is_refused() {
    with_lab(|lab| {
        let spc = with_util_linux(lab, &MINIMAL)?;
        install(&spc, &[])?;
        let newer =
            r#"sed -i 's/"version": ".*"/"version": "99.1.0"/' /var/lib/spc/installed.json"#;
        spc.host.sh(newer)?.ok()?;
        spc.refused(
            &["spc", "install"],
            1,
            &["spc 99.1.0 is installed", "--force"],
        )?;
        ensure!(install(&spc, &["--force"])?["before"] == "99.1.0");
        install(&spc, &[]).map(drop)
    });
}

#[test]
fn a_read_only_usr_without_systemd_needs_one_line() {
    with_lab(|lab| {
        let spc = with_util_linux(lab, &MINIMAL)?;
        let read_only =
            "mkdir -p /opt/bin && mount --bind /usr /usr && mount -o remount,bind,ro /usr";
        spc.host.sh(read_only)?.ok()?;
        let before = listing(&spc)?;
        let done = install(&spc, &["--flexvolume", "/opt/plugins"])?;
        let line = done["add"]["line"].as_str().context("nothing to add")?;
        ensure!(
            done["add"]["file"] == "/etc/fstab" && done["directory"] == "/usr/sbin",
            "{done}"
        );
        ensure_works(&spc, "/opt/bin/spc")?;
        let driver = "/opt/plugins/spc~spc/spc";
        let drivers = serde_json::json!([driver, "/opt/plugins/spc~no-fsgroup/no-fsgroup"]);
        ensure!(done["drivers"] == drivers, "{done}");
        let init = spc.host.run(&[driver, "init"])?.ok()?.text();
        let init: Value = serde_json::from_str(&init)?;
        ensure!(init["status"] == "Success", "{init}");
        let unknown = spc
            .host
            .run(&["mount", "-t", "spc", "none", "/mnt"])?
            .code(32)?;
        ensure!(
            unknown.error_text().contains("unknown filesystem type"),
            "{unknown}"
        );
        // The line is enough, and the mount hides no file of the host.
        spc.host
            .write("/etc/fstab", format!("{line}\n").as_bytes())?;
        let programs = spc.host.sh("ls /usr/sbin")?.text();
        spc.host
            .sh("/usr/bin/mount /usr/sbin && test -L /sbin/mount.spc && rm /etc/fstab")?
            .ok()?;
        let now = spc.host.sh("ls /usr/sbin")?.text();
        for name in programs.lines() {
            ensure!(now.lines().any(|other| other == name), "{name} is hidden");
        }
        ensure_leads_to_spc(&spc, "/sbin/mount.spc")?;
        // The next install does not mistake the extension for the host's own.
        let again = install(&spc, &[])?;
        ensure!(
            again["changed"] == false && again["kept"] == serde_json::json!([]),
            "{again}"
        );
        ensure!(again["drivers"] == drivers, "{again}");
        spc.host.run(&["umount", "/usr/sbin"])?.ok()?;
        spc.exec(&["spc", "uninstall"])?.ok()?;
        ensure_same(&before, &listing(&spc)?)
    });
}

#[test]
fn a_noexec_var_gets_a_copy_in_usr() {
    with_lab(|lab| {
        let spc = with_util_linux(lab, &MINIMAL)?;
        spc.host
            .sh("mkdir -p /var/lib/spc && mount -t tmpfs -o noexec none /var/lib/spc")?
            .ok()?;
        let before = listing(&spc)?;
        install(&spc, &[])?;
        ensure_works(&spc, "/usr/sbin/spc")?;
        ensure_leads_to_spc(&spc, "/var/lib/spc/mounter")?;
        let link = spc
            .host
            .run(&["readlink", "/usr/sbin/mount.nfs"])?
            .ok()?
            .text();
        ensure!(link == "/usr/sbin/spc", "{link}");
        spc.exec(&["spc", "uninstall"])?.ok()?;
        ensure_same(&before, &listing(&spc)?)
    });
}
