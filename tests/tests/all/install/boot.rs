//! Hosts that run systemd: units and fstab at boot, and a `/usr` that cannot be written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Base, Root, Vm, VmOptions};
use serde_json::Value;

use crate::install::lifecycle::ensure_same;
use crate::support::{VmSpc, until, with_gluster};

pub const SYSTEMD: VmOptions = VmOptions {
    root: Root::Systemd,
    image: Some(Base::Trixie),
    memory: 1536,
    keeps: true,
};

/// Runs `spc install` in the container, and removes the container.
pub fn install(spc: &VmSpc<'_>) -> Result<Value> {
    let words = ["runc", "exec", "spc", "spc", "install", "--json"];
    let limit = Duration::from_secs(180);
    let done = spc.host.command(&words).limit(limit).run()?.ok()?;
    spc.remove()?;
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// Listing of the host's own file systems, with the targets of links.
fn listing(vm: &Vm<'_>) -> Result<String> {
    let find = "find /etc /opt /usr /var -xdev \\( -path /var/log -o -path /var/tmp -o -path /var/lib/systemd -o -path /etc/.updated -o -path /var/.updated \\) -prune -o -printf '%p %y %m %l\\n' | sort";
    Ok(vm.sh(find)?.ok()?.text())
}

/// Types of the mounts on a target of the host.
pub fn mounted(vm: &Vm<'_>, target: &str) -> Result<Vec<String>> {
    let mounts = vm.mountinfo()?.into_iter();
    let on = mounts.filter(|mount| mount.target.as_os_str() == target);
    Ok(on.map(|mount| mount.fstype).collect())
}

#[test]
fn fstab_and_units_mount_at_boot() {
    with_gluster(|lab, cluster| {
        let server = lab::knfsd().context("no lab")?;
        let spc = VmSpc::boot(lab, SYSTEMD)?;
        let vm = &spc.host;
        let before = listing(vm)?;
        let done = install(&spc)?;
        ensure!(
            done["directory"] == "/usr/sbin" && done["add"].is_null(),
            "{done}"
        );
        let volume = format!("{}:/vol", cluster.nodes()[0].host().address());
        let export = format!("{}:/data", server.vm().address());

        // By hand, with two kinds: one leaves a daemon, one needs the kernel.
        vm.sh("mkdir -p /mnt/g /mnt/n")?.ok()?;
        for (fs_type, source, target, shown) in [
            ("glusterfs", &volume, "/mnt/g", "fuse.glusterfs"),
            ("nfs", &export, "/mnt/n", "nfs4"),
        ] {
            vm.run(&["mount", "-t", fs_type, source, target])?.ok()?;
            ensure!(
                mounted(vm, target)? == [shown],
                "{:?}",
                mounted(vm, target)?
            );
            vm.run(&["touch", &format!("{target}/by-hand")])?.ok()?;
            let touch = format!("touch {target}/by-hand");
            vm.run(&["mount", "-o", "remount,ro", target])?.ok()?;
            let refused = vm.sh(&touch)?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            vm.run(&["mount", "-o", "remount,rw,nosuid", target])?
                .ok()?;
            vm.sh(&touch)?.ok()?;
            let mounts = vm.mountinfo()?;
            let on = mounts
                .iter()
                .find(|mount| mount.target.as_os_str() == target);
            ensure!(on.is_some_and(|on| on.options.contains("nosuid")), "{on:?}");
            vm.run(&["umount", target])?.ok()?;
            ensure!(mounted(vm, target)?.is_empty());
        }
        // A service with mounts of its own, and mount(8), which makes a namespace for X-mount.subdir=.
        let service = format!(
            "[Service]\nType=oneshot\nPrivateMounts=yes\nStandardError=file:/run/own\nExecStart=mount -t nfs {export} /mnt/n\n"
        );
        vm.write("/run/systemd/system/own.service", service.as_bytes())?;
        let subdir = format!("mount -t nfs -o X-mount.subdir=below {export} /mnt/n 2>/run/own");
        for command in [
            "systemctl daemon-reload && systemctl start own.service",
            &subdir,
        ] {
            ensure!(!vm.sh(command)?.success());
            let error = String::from_utf8(vm.read("/run/own")?)?;
            ensure!(
                error.contains("mount namespace is not the host's"),
                "{error}"
            );
            ensure!(
                mounted(vm, "/mnt/n")?.is_empty() && mounted(vm, "/run/mount/tmptgt")?.is_empty()
            );
        }
        vm.sh("systemctl reset-failed own.service; rm /run/systemd/system/own.service")?;
        let wrong = export.replace("/data", "/nosuch");
        let failed = vm
            .run(&["mount", "-t", "nfs", &wrong, "/mnt/n"])?
            .code(32)?;
        ensure!(failed.error_text().starts_with("mount.nfs: "), "{failed}");

        // At boot: a line of fstab, a unit, and an automount.
        let without = vm.read("/etc/fstab")?;
        let fstab = format!("{export} /mnt/n nfs defaults,_netdev 0 0\n");
        vm.write("/etc/fstab", fstab.as_bytes())?;
        let unit = |source: &str, target: &str, fs_type: &str| {
            format!(
                "[Unit]\nAfter=network-online.target\n[Mount]\nWhat={source}\nWhere={target}\nType={fs_type}\nOptions=_netdev\n\
                 [Install]\nWantedBy=remote-fs.target\n"
            )
        };
        vm.write(
            "/etc/systemd/system/mnt-g.mount",
            unit(&volume, "/mnt/g", "glusterfs").as_bytes(),
        )?;
        vm.write(
            "/etc/systemd/system/mnt-a.mount",
            unit(&volume, "/mnt/a", "glusterfs").as_bytes(),
        )?;
        let automount = "[Automount]\nWhere=/mnt/a\n[Install]\nWantedBy=remote-fs.target\n";
        vm.write("/etc/systemd/system/mnt-a.automount", automount.as_bytes())?;
        vm.run(&["systemctl", "enable", "mnt-g.mount", "mnt-a.automount"])?
            .ok()?;
        vm.reboot()?;
        until("systemd has started", || {
            let state = vm.run(&["systemctl", "is-system-running"])?.text();
            ensure!(
                state != "degraded",
                "{}\n{}",
                vm.sh("systemctl --failed")?,
                vm.sh("journalctl -b | tail -50")?
            );
            Ok(state == "running")
        })?;
        ensure!(mounted(vm, "/mnt/g")? == ["fuse.glusterfs"] && mounted(vm, "/mnt/n")? == ["nfs4"]);
        ensure!(
            mounted(vm, "/mnt/a")? == ["autofs"],
            "{:?}",
            mounted(vm, "/mnt/a")?
        );
        vm.run(&["ls", "/mnt/a/by-hand"])?.ok()?;
        ensure!(mounted(vm, "/mnt/a")? == ["autofs", "fuse.glusterfs"]);
        // The daemon is outside of the unit, in a scope with a readable description.
        let scope = vm
            .run(&["systemctl", "show", "-P", "Description", "spc-mnt-g.scope"])?
            .text();
        ensure!(
            scope.contains("glusterfs") && scope.contains("/mnt/g"),
            "{scope}"
        );
        let tasks = vm
            .run(&["systemctl", "show", "-P", "TasksMax", "spc-mnt-g.scope"])?
            .text();
        ensure!(tasks.trim() == "1024", "processes are not limited: {tasks}");
        vm.run(&["systemctl", "daemon-reexec"])?.ok()?;
        vm.run(&["ls", "/mnt/g/by-hand"])?.ok()?;

        // The unit unmounts and mounts.
        vm.run(&["systemctl", "stop", "mnt-g.mount"])?.ok()?;
        ensure!(mounted(vm, "/mnt/g")?.is_empty());
        until("its daemon has ended", || {
            Ok(!vm
                .run(&["systemctl", "is-active", "spc-mnt-g.scope"])?
                .success())
        })?;
        vm.run(&["systemctl", "start", "mnt-g.mount"])?.ok()?;
        ensure!(mounted(vm, "/mnt/g")? == ["fuse.glusterfs"]);

        expires(&spc, &volume, &export).context("automounts")?;

        // Nothing is left.
        vm.sh("systemctl disable --now mnt-a.automount mnt-g.mount && systemctl stop mnt-a.mount; umount /mnt/n")?
            .ok()?;
        vm.write("/etc/fstab", &without)?;
        vm.sh("rm /etc/systemd/system/mnt-* && systemctl daemon-reload")?
            .ok()?;
        vm.run(&["spc", "uninstall"])?.ok()?;
        vm.sh("rmdir /mnt/*")?.ok()?;
        ensure_same(&before, &listing(vm)?)
    });
}

/// Mounts by automount units with an idle timeout, without and with the container, and waits until
/// systemd has unmounted them.
fn expires(spc: &VmSpc<'_>, volume: &str, export: &str) -> Result<()> {
    let vm = &spc.host;
    let fstab = vm.read("/etc/fstab")?;
    let options = "noauto,_netdev,x-systemd.automount,x-systemd.idle-timeout=2";
    let lines =
        format!("{volume} /mnt/xg glusterfs {options} 0 0\n{export} /mnt/xn nfs {options} 0 0\n");
    vm.write("/etc/fstab", lines.as_bytes())?;
    let units = "mnt-xg.automount mnt-xn.automount";
    vm.sh(&format!(
        "systemctl daemon-reload && systemctl start {units}"
    ))?
    .ok()?;
    for with_container in [false, true] {
        if with_container {
            vm.start_container()?;
        }
        for (target, shown) in [("/mnt/xg", "fuse.glusterfs"), ("/mnt/xn", "nfs4")] {
            vm.run(&["ls", target])?.ok()?;
            ensure!(mounted(vm, target)? == ["autofs", shown]);
            until("the automount has expired", || {
                Ok(mounted(vm, target)? == ["autofs"])
            })
            .with_context(|| format!("{target}, container: {with_container}"))?;
        }
    }
    spc.remove()?;
    vm.sh(&format!("systemctl stop {units}"))?.ok()?;
    vm.write("/etc/fstab", &fstab)?;
    vm.sh("systemctl daemon-reload")?.ok()?;
    Ok(())
}

#[test]
fn a_read_only_usr_gets_a_system_extension() {
    with_gluster(|lab, cluster| {
        let spc = VmSpc::boot(lab, SYSTEMD)?;
        let vm = &spc.host;
        let volume = format!("{}:/vol", cluster.nodes()[0].host().address());
        // The machine's modules are mounted below /usr, where an extension would hide any mount.
        // Workers of udev may still use them.
        vm.sh("modprobe fuse; modprobe overlay; umount -l /usr/lib/modules && mount --bind /usr /usr && mount -o remount,bind,ro /usr")?
            .ok()?;
        let before = listing(vm)?;
        let done = install(&spc)?;
        ensure!(
            done["directory"] == "/usr/sbin" && done["add"].is_null(),
            "{done}"
        );
        vm.sh("touch /usr/sbin/x")?.code(1)?;
        vm.run(&["mkdir", "-p", "/mnt/g"])?.ok()?;
        vm.run(&["mount", "-t", "glusterfs", &volume, "/mnt/g"])?
            .ok()?;
        ensure!(mounted(vm, "/mnt/g")? == ["fuse.glusterfs"]);
        vm.run(&["umount", "/mnt/g"])?.ok()?;
        vm.run(&["systemctl", "is-enabled", "systemd-sysext.service"])?
            .ok()?;
        vm.run(&["rmdir", "/mnt/g"])?.ok()?;

        // The programs are there after a reboot.
        vm.reboot()?;
        until("the names are on the host", || {
            Ok(vm.run(&["test", "-L", "/sbin/mount.glusterfs"])?.success())
        })?;
        vm.run(&["systemctl", "is-active", "systemd-sysext.service"])?
            .ok()?;
        vm.run(&["spc", "uninstall"])?.ok()?;
        vm.run(&["systemctl", "is-enabled", "systemd-sysext.service"])?
            .code(1)?;
        vm.run(&["test", "-e", "/sbin/mount.glusterfs"])?.code(1)?;
        ensure_same(&before, &listing(vm)?)
    });
}
