//! Callers on an installed host that have a mount namespace or a root directory of their own.

use anyhow::ensure;

use crate::install::native_commands::installed;
use crate::support::with_lab;

#[test]
fn a_caller_elsewhere_mounts_and_unmounts_nothing_on_the_host() {
    with_lab(|lab| {
        let spc = installed(lab)?;
        let host = &spc.host;
        host.sh(
            "mkdir -p /mnt/t /mnt/kept /tmp/root && /usr/bin/mount -t spc.tmpfs kept /mnt/kept",
        )?
        .ok()?;
        let before = host.mountinfo()?;
        let chroot = |command: &str| {
            format!(
                "mount --rbind / /tmp/root && mount --make-rslave /tmp/root && chroot /tmp/root {command}"
            )
        };
        let mount = "/usr/bin/mount -t spc.tmpfs scratch /mnt/t";
        let fuse = "/usr/bin/mount -t fuse.bindfs /host/srv /mnt/t";
        for (why, propagation, command) in [
            ("namespace", "private", mount.to_owned()),
            ("namespace", "slave", mount.to_owned()),
            ("namespace", "shared", fuse.to_owned()),
            (
                "namespace",
                "slave",
                "spc mount -t tmpfs scratch /mnt/t".to_owned(),
            ),
            (
                "namespace",
                "private",
                "/usr/sbin/umount.nfs /mnt/kept".to_owned(),
            ),
            ("namespace", "private", "spc umount /mnt/kept".to_owned()),
            ("namespace", "private", chroot(mount)),
        ] {
            let words = ["unshare", "-m", "--propagation", propagation, "sh", "-c"];
            let command = [&words[..], &[command.as_str()]].concat();
            let output = host.run(&command)?;
            let text = output.error_text();
            ensure!(
                !output.success() && text.contains(why) && text.contains("\nhint: "),
                "{propagation}: {output}"
            );
            ensure!(host.mountinfo()? == before, "{output}");
        }
        // In a PID namespace, where process 1 is the shell. systemd has a cgroup of its own.
        host.sh(
            "mkdir /sys/fs/cgroup/init.scope && echo 1 >/sys/fs/cgroup/init.scope/cgroup.procs",
        )?
        .ok()?;
        for command in [mount, fuse, "spc umount /mnt/kept"] {
            let words = ["unshare", "-p", "-f", "--mount-proc", "sh", "-c"];
            let refused = host.run(&[&words[..], &[command]].concat())?;
            let text = refused.error_text();
            ensure!(
                !refused.success() && text.contains("PID namespace") && text.contains("\nhint: "),
                "{refused}"
            );
            ensure!(host.mountinfo()? == before, "{refused}");
        }
        host.sh(&format!("{mount} && spc umount /mnt/t"))?.ok()?;
        // In the host's namespace, below another root directory.
        host.sh("mount -t tmpfs root /tmp/root && cd /tmp/root && mkdir proc var etc run dev usr mnt mnt/t && for d in proc var etc run dev usr; do mount --rbind /$d $d; done; ln -s usr/bin usr/sbin usr/lib usr/lib64 .")?
            .ok()?;
        let before = host.mountinfo()?;
        let refused = host.run(&["chroot", "/tmp/root", "sh", "-c", mount])?;
        let text = refused.error_text();
        ensure!(
            !refused.success() && text.contains("root directory") && text.contains("\nhint: "),
            "{refused}"
        );
        ensure!(host.mountinfo()? == before);
        host.run(&["spc", "umount", "/mnt/kept"])?.ok()?;
        Ok(())
    });
}
