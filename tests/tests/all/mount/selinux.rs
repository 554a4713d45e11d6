//! A host that enforces SELinux with Debian's policy, without and with the policy module of the
//! image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Output, Root, VmOptions};
use serde_json::json;

use crate::kinds::fuse::sshd;
use crate::support::{VmSpc, with_gluster};

/// Document with the commands that this test runs.
const RUN: &str = include_str!("../../../../docs/run.md");

/// The image's policy module.
const MODULE: &str = "/run/container/rootfs/usr/share/spc/selinux/spc.cil";

/// Label for a mount, without its level.
const LABEL: &str = "system_u:object_r:container_file_t";

/// Options of sshfs.
const SSH: &str = "IdentityFile=/run/key,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null";

/// Sources on servers.
struct Sources {
    ssh: String,
    volume: String,
    export: String,
}

/// Starts the container. Without a domain, the policy chooses one, as for `docker run --pid=host`.
fn start(spc: &VmSpc<'_>, domain: Option<&str>) -> Result<()> {
    spc.host.start_changed(|config| {
        if let Some(domain) = domain {
            config["process"]["selinuxLabel"] = format!("system_u:system_r:{domain}:s0").into();
        }
    })
}

/// Runs a command of the host that takes long on an emulated machine.
fn slow(spc: &VmSpc<'_>, words: &[&str]) -> Result<Output> {
    let command = spc.host.command(words);
    command.limit(Duration::from_secs(600)).run()
}

/// Runs `spc ARGUMENTS` in the container. The first mount copies the client programs.
fn in_container(spc: &VmSpc<'_>, arguments: &[&str]) -> Result<Output> {
    slow(spc, &[&["runc", "exec", "spc", "spc"], arguments].concat())?.ok()
}

/// Mounts, writes a file, and returns the cgroup of the daemon.
fn cgroup_of_daemon(spc: &VmSpc<'_>, fs_type: &str, options: &str, source: &str) -> Result<String> {
    let options = format!("x-mount.mkdir,{options}");
    let words = ["mount", "-t", fs_type, "-o", &options, source, "/mnt/b"];
    in_container(spc, &words)?;
    spc.host.write("/mnt/b/selinux", fs_type.as_bytes())?;
    ensure!(spc.host.read("/mnt/b/selinux")? == fs_type.as_bytes());
    let record = spc.record("/mnt/b")?;
    ensure!(record["state"] == "ok", "{record}");
    let cgroup = spc
        .host
        .read(format!("/proc/{}/cgroup", record["daemon"][0]))?;
    spc.umount("/mnt/b")?;
    Ok(String::from_utf8(cgroup)?)
}

/// Returns the label of a file.
fn label(spc: &VmSpc<'_>, path: &str) -> Result<String> {
    Ok(spc.host.run(&["stat", "-c", "%C", path])?.ok()?.text())
}

/// Clears the kernel's log, and returns the denials that were in it for processes or files of spc,
/// and for mount(8).
fn denials(spc: &VmSpc<'_>) -> Result<String> {
    let script = "dmesg -c | grep -E 'denied.*(:spc_t:|:spc_lib_t:|:mount_t:)' || true";
    Ok(spc.host.sh(script)?.ok()?.text())
}

/// A type for containers may not enter the host's namespace.
fn container_t_is_refused(spc: &VmSpc<'_>) -> Result<()> {
    start(spc, Some("container_t"))?;
    let report = spc.exec(&["spc", "doctor"])?.code(2)?.text();
    let failed = report.matches("FAIL").count();
    ensure!(
        failed > 0 && report.matches("label=disable").count() == failed,
        "{report}"
    );
    ensure!(report.contains("FAIL host"), "{report}");
    spc.remove()
}

/// Without the module, systemd refuses scopes, and mount units may not run what `spc install` put
/// on the host.
fn works_without_the_module(spc: &VmSpc<'_>, sources: &Sources) -> Result<()> {
    let report = spc.exec(&["spc", "doctor"])?.ok()?.text();
    ensure!(report.contains("systemd refuses scopes"), "{report}");
    let cgroup = cgroup_of_daemon(spc, "sshfs", SSH, &sources.ssh)?;
    ensure!(cgroup.contains("/spc/mnt-b"), "{cgroup}");
    let cgroup = cgroup_of_daemon(spc, "glusterfs", "", &sources.volume)?;
    ensure!(cgroup.contains("/spc/mnt-b"), "{cgroup}");

    let installed = in_container(spc, &["install"])?;
    let hint = "restorecon -R /var/lib/spc";
    ensure!(installed.error_text().contains(hint), "{installed}");
    let unit = format!(
        "[Mount]\nWhat={}\nWhere=/mnt/unit\nType=glusterfs\n",
        sources.volume
    );
    let file = "/etc/systemd/system/mnt-unit.mount";
    spc.host.write(file, unit.as_bytes())?;
    let failed = slow(spc, &["systemctl", "start", "mnt-unit.mount"])?;
    ensure!(!failed.success(), "{failed}");
    // The lab runs mount(8) in the same domain.
    let by_hand = ["mount", "-t", "glusterfs", &sources.volume, "/mnt/unit"];
    let failed = slow(spc, &by_hand)?;
    let unknown = failed.error_text();
    ensure!(unknown.contains("unknown filesystem type"), "{failed}");
    ensure!(RUN.contains("unknown filesystem type"));
    Ok(())
}

/// Mounts with this option by a command, which is without a target, and checks the label.
fn labelled(spc: &VmSpc<'_>, command: &[&str], option: &str, expected: &str) -> Result<()> {
    spc.host.run(&["mkdir", "-p", "/mnt/labelled"])?.ok()?;
    slow(spc, &[command, &["-o", option, "/mnt/labelled"]].concat())?.ok()?;
    let shown = label(spc, "/mnt/labelled")?;
    ensure!(shown == expected, "{command:?} {option}: {shown}");
    Ok(())
}

/// Labels of mounts: of a file system of the kernel, of FUSE programs, which parse lists in their
/// own ways. A helper that does not see that the host has SELinux would leave them out.
fn labels_are_passed_on(spc: &VmSpc<'_>, sources: &Sources) -> Result<()> {
    let (plain, categories) = (format!("{LABEL}:s0"), format!("{LABEL}:s0:c1,c2"));
    let quoted = format!("context=\"{categories}\"");
    let mount = ["runc", "exec", "spc", "spc", "mount", "-t"];
    let spc_mount = |source: &[&str], option: &str, expected: &str| {
        labelled(spc, &[&mount, source].concat(), option, expected)?;
        spc.umount("/mnt/labelled").map(drop)
    };
    spc_mount(&["tmpfs", "none"], &quoted, &categories)?;
    let escaped = format!("{SSH},{}", quoted.replace(',', "\\,"));
    spc_mount(&["sshfs", &sources.ssh], &escaped, &categories)?;
    let unquoted = format!("context={plain}");
    spc_mount(&["glusterfs", &sources.volume], &unquoted, &plain)?;
    let words = ["-t", "nfs", "-o", &quoted, &sources.export, "/mnt"];
    let refused = ["SELinux labels", "/sys/fs/selinux"];
    spc.refused_mount(&words, 1, &refused).map(drop)
}

/// In a container that shows what mount(8) looks for, labels of NFS mounts are passed on, by
/// `spc mount` and by mount(8).
fn labels_of_nfs_are_passed_on(spc: &VmSpc<'_>, sources: &Sources) -> Result<()> {
    spc.remove()?;
    spc.host.start_changed(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            for (path, access) in [("/sys/fs/selinux", "rw"), ("/etc/selinux", "ro")] {
                mounts.push(json!({"destination": path, "source": path, "type": "bind", "options": ["bind", access]}));
            }
        }
    })?;
    let categories = format!("{LABEL}:s0:c1,c2");
    let option = format!("context=\"{categories}\"");
    // mount(8) looks for the target in the container.
    spc.exec(&["mkdir", "-p", "/mnt/labelled"])?.ok()?;
    let exec = ["runc", "exec", "spc"];
    let nfs = ["-t", "nfs", &sources.export];
    for (mount, umount) in [
        (&["spc", "mount"][..], &["spc", "umount"][..]),
        (&["mount"], &["umount"]),
    ] {
        let mount = [&exec, mount, &nfs].concat();
        labelled(spc, &mount, &option, &categories)?;
        spc.exec(&[umount, &["/mnt/labelled"]].concat())?.ok()?;
    }
    Ok(())
}

/// Installs the module by the commands of the document.
fn install_module(spc: &VmSpc<'_>) -> Result<()> {
    ensure!(RUN.contains("cat /usr/share/spc/selinux/spc.cil >spc.cil"));
    spc.host.run(&["cp", MODULE, "/root/spc.cil"])?.ok()?;
    for command in ["semodule --install spc.cil", "restorecon -R /var/lib/spc"] {
        ensure!(RUN.contains(&format!("\n    {command}")), "{command}");
        slow(spc, &["sh", "-c", &format!("cd /root && {command}")])?.ok()?;
    }
    let shown = label(spc, "/var/lib/spc/current")?;
    ensure!(shown == "system_u:object_r:spc_lib_t:s0", "{shown}");
    Ok(())
}

/// With the module, daemons run in scopes and mount units mount. Nothing is denied.
fn works_with_the_module(spc: &VmSpc<'_>, sources: &Sources) -> Result<()> {
    let report = spc.exec(&["spc", "doctor"])?.ok()?.text();
    ensure!(report.contains("scopes of systemd"), "{report}");
    for (fs_type, options, source) in [
        ("sshfs", SSH, &sources.ssh),
        ("glusterfs", "", &sources.volume),
        ("fuse.bindfs", "", &"/host/srv".to_owned()),
    ] {
        let cgroup = cgroup_of_daemon(spc, fs_type, options, source)?;
        ensure!(cgroup.contains("spc-mnt-b.scope"), "{fs_type}: {cgroup}");
    }
    let (start, stop) = (["start", "mnt-unit.mount"], ["stop", "mnt-unit.mount"]);
    slow(spc, &[&["systemctl"], &start[..]].concat())?.ok()?;
    let record = spc.record("/mnt/unit")?;
    let of_daemon = |file: &str| -> Result<String> {
        let path = format!("/proc/{}/{file}", record["daemon"][0]);
        Ok(String::from_utf8(spc.host.read(path)?)?)
    };
    ensure!(
        of_daemon("cgroup")?.contains("spc-mnt-unit.scope"),
        "{record}"
    );
    let domain = of_daemon("attr/current")?;
    ensure!(domain.contains(":spc_t:"), "{domain}");
    spc.host.write("/mnt/unit/by-unit", b"written")?;
    slow(spc, &[&["systemctl"], &stop[..]].concat())?.ok()?;

    // A new directory needs no restorecon.
    in_container(spc, &["uninstall"])?;
    spc.host.sh("test ! -e /var/lib/spc")?.ok()?;
    cgroup_of_daemon(spc, "sshfs", SSH, &sources.ssh)?;
    let shown = label(spc, "/var/lib/spc/roots")?;
    ensure!(shown == "system_u:object_r:spc_lib_t:s0", "{shown}");
    let denied = denials(spc)?;
    ensure!(denied.is_empty(), "{denied}");
    Ok(())
}

#[test]
#[ignore = "long: SELinux on an emulated machine, 10 minutes"]
fn everything_mounts_where_selinux_is_enforced() {
    with_gluster(|lab, cluster| {
        let options = VmOptions {
            root: Root::Selinux,
            ..VmOptions::default()
        };
        let spc = VmSpc::booted(lab, options)?;
        ensure!(spc.host.run(&["getenforce"])?.text() == "Enforcing");
        let (server, nfs) = (sshd(lab)?, lab::ganesha().context("no lab")?);
        let sources = Sources {
            ssh: format!("root@{}:/srv/data", server.address()),
            volume: format!("{}:/vol", cluster.nodes()[0].host().address()),
            export: format!("{}:/vfs", nfs.host().address()),
        };
        container_t_is_refused(&spc)?;
        start(&spc, None)?;
        let key = || -> Result<()> {
            spc.put("/run/key", &server.read("/root/key")?)?;
            spc.sh("chmod 600 /run/key")?.ok().map(drop)
        };
        key()?;
        works_without_the_module(&spc, &sources).context("without the module")?;
        labels_are_passed_on(&spc, &sources).context("labels")?;
        let denied = denials(&spc)?;
        ensure!(
            denied.contains("{ start }"),
            "no denials in the log: {denied}"
        );
        install_module(&spc).context("the module")?;
        works_with_the_module(&spc, &sources).context("with the module")?;
        labels_of_nfs_are_passed_on(&spc, &sources).context("labels of NFS")?;
        spc.is_clean()
    });
}
