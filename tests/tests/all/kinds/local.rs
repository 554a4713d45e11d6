//! File systems that the kernel mounts without a helper, each with data on the host.

use anyhow::{Result, ensure};

use crate::support::images::{Attached, attach};
use crate::support::{Spc, until, with_container};

#[test]
fn the_kernel_mounts_without_a_helper() {
    with_container(|spc| {
        let host = &spc.host;

        let mount = ["-t", "tmpfs", "-o", "size=64k,mode=0700,noexec", "scratch"];
        spc.life(&mount, "/mnt/tmpfs", ["tmpfs", "scratch"], |_| {
            host.write("/mnt/tmpfs/file", b"kept")?;
            ensure!(host.read("/mnt/tmpfs/file")? == b"kept");
            ensure!(host.sh("stat -c %a /mnt/tmpfs")?.ok()?.text() == "700");
            let mounted = &spc.on("/mnt/tmpfs")?[0];
            ensure!(mounted.options.contains("noexec"), "{mounted:?}");
            let big = host.sh("dd if=/dev/zero of=/mnt/tmpfs/big bs=4k count=32")?;
            ensure!(big.error_text().contains("No space left"), "{big}");
            Ok(())
        })?;

        host.sh("mkdir -p /srv/source/below && mount -t tmpfs inner /srv/source/below && echo there > /srv/source/below/file")?.ok()?;
        host.write("/srv/source/file", b"bound")?;
        let source = spc.on("/")?[0].source.clone();
        let source = source.to_string_lossy();
        spc.life(
            &["--bind", "/srv/source"],
            "/mnt/bind",
            ["overlay", &source],
            |_| {
                ensure!(host.read("/mnt/bind/file")? == b"bound");
                host.write("/mnt/bind/new", b"through")?;
                ensure!(host.read("/srv/source/new")? == b"through");
                ensure!(
                    !host
                        .sh("ls -A /mnt/bind/below")?
                        .ok()?
                        .text()
                        .contains("file"),
                    "a bind without -R contains the mount below its source"
                );
                Ok(())
            },
        )?;
        let mount = ["-o", "bind,ro", "/srv/source"];
        spc.life(&mount, "/mnt/read only", ["overlay", &source], |_| {
            ensure!(host.read("/mnt/read only/file")? == b"bound");
            let refused = host.sh("echo x > '/mnt/read only/file'")?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            host.write("/srv/source/new", b"still writable")
        })?;

        host.sh("mkdir /srv/o && mount -t tmpfs layers /srv/o && mkdir /srv/o/lower /srv/o/upper /srv/o/work")?.ok()?;
        host.write("/srv/o/lower/file", b"lower")?;
        let layers = "lowerdir=/srv/o/lower,upperdir=/srv/o/upper,workdir=/srv/o/work";
        let mount = ["-t", "overlay", "-o", layers, "merged"];
        spc.life(&mount, "/mnt/overlay", ["overlay", "merged"], |_| {
            ensure!(host.read("/mnt/overlay/file")? == b"lower");
            host.write("/mnt/overlay/file", b"upper")?;
            ensure!(host.read("/srv/o/upper/file")? == b"upper");
            ensure!(host.read("/srv/o/lower/file")? == b"lower");
            Ok(())
        })
    });
}

/// Mode, owner and group of a directory of the host.
fn owner(spc: &Spc<'_>, path: &str) -> Result<String> {
    Ok(spc
        .host
        .run(&["stat", "-c", "%a %u %g", path])?
        .ok()?
        .text())
}

#[test]
fn a_mount_is_changed_before_it_is_attached_and_by_a_remount() {
    with_container(|spc| {
        let host = &spc.host;
        let Attached { device, .. } = attach(host, 8, &["mkfs.ext4", "-q", "-F"])?;
        host.sh(&format!("mkdir -p /mnt/d && mount -t ext4 {device} /mnt/d && cd /mnt/d && mkdir -p a/b && echo x >a/b/file && ln -s /a link && cd / && umount /mnt/d"))?
            .ok()?;
        let source = ["-t", "ext4", &device, "/mnt/d", "-o"];
        for subdir in ["a/b", "/a/b", "link/b", "../../a/b"] {
            let options = format!(
                "X-mount.subdir={subdir},X-mount.owner=7,X-mount.group=8,X-mount.mode=0750"
            );
            spc.mount(&[&source[..], &[&options]].concat())?;
            ensure!(host.read("/mnt/d/file")? == b"x\n");
            ensure!(owner(spc, "/mnt/d")? == "750 7 8");
            let again = [&source[..], &["X-mount.subdir=a"]].concat();
            spc.refused_mount(&again, 32, &["already mounted"])?;
            spc.umount("/mnt/d")?;
        }
        let missing = [&source[..], &["X-mount.subdir=a/none"]].concat();
        spc.refused_mount(&missing, 32, &["a/none", "No such file"])?;
        let idmap = [
            &source[..],
            &["X-mount.idmap=u:7:1007:1 g:8:1008:1,X-mount.subdir=a/b"],
        ];
        spc.mount(&idmap.concat())?;
        ensure!(
            owner(spc, "/mnt/d")? == "750 1007 1008",
            "{}",
            owner(spc, "/mnt/d")?
        );
        spc.umount("/mnt/d")?;

        // The mount of a helper.
        host.sh("mkdir -p /srv/source/below && echo x >/srv/source/below/file")?
            .ok()?;
        let words = ["-t", "fuse.bindfs", "/host/srv/source", "/mnt/d", "-o"];
        spc.mount(&[&words[..], &["X-mount.subdir=below,X-mount.mode=0711"]].concat())?;
        ensure!(host.read("/mnt/d/file")? == b"x\n" && owner(spc, "/mnt/d")? == "711 0 0");
        ensure!(spc.record("/mnt/d")?["route"] == "graft");
        spc.umount("/mnt/d")?;
        let preload = [&words[..], &["X-mount.subdir=below", "--route=preload"]].concat();
        spc.refused_mount(&preload, 1, &["--route preload"])?;

        // A remount, and an unmount that becomes one.
        spc.mount(&["-t", "tmpfs", "x", "/mnt/d"])?;
        spc.mount(&["-o", "remount,ro,nosuid", "x", "/mnt/d"])?;
        let on = &spc.on("/mnt/d")?[0];
        ensure!(on.options.starts_with("ro,nosuid"), "{on:?}");
        spc.mount(&["-o", "remount,rw", "x", "/mnt/d"])?;
        host.write("/mnt/d/file", b"x")?;
        let size = ["-o", "remount,nosuchoption=1", "x", "/mnt/d"];
        let refused = spc
            .exec(&[&["spc", "mount"], &size[..]].concat())?
            .code(32)?;
        ensure!(refused.error_text().contains("nosuchoption"), "{refused}");
        spc.sh("ln -s /usr/bin/spc /usr/sbin/umount.any")?.ok()?;
        let _busy = host.spawn(&["sh", "-c", "cd /mnt/d && sleep 50"])?;
        until("the mount is busy", || {
            let umount = spc.exec(&["umount.any", "/mnt/d", "-r"])?.ok()?;
            ensure!(umount.stdout.is_empty());
            Ok(spc.on("/mnt/d")?[0].options.starts_with("ro,"))
        })?;
        spc.exec(&["spc", "umount", "-l", "/mnt/d"])?.ok()?;
        let nothing = ["-o", "remount,ro", "x", "/mnt/d"];
        spc.refused_mount(&nothing, 32, &["not mounted"])?;
        Ok(())
    });
}

#[test]
fn binds_and_overlays_take_the_options_that_mount_takes() {
    with_container(|spc| {
        let host = &spc.host;
        host.sh("mkdir -p /srv/s /mnt/b && mount -t tmpfs -o nosuid s /srv/s")?
            .ok()?;
        for (options, shown) in [
            ("bind,noatime", "rw,nosuid,noatime"),
            ("bind,ro,nodiratime", "ro,nosuid,nodiratime,relatime"),
            ("bind,suid,strictatime", "rw"),
            ("bind,user,exec", "rw,nosuid,nodev,relatime"),
        ] {
            spc.mount(&["-o", options, "/srv/s", "/mnt/b"])?;
            ensure!(
                spc.on("/mnt/b")?[0].options == shown,
                "{:?}",
                spc.on("/mnt/b")?
            );
            spc.umount("/mnt/b")?;
        }
        let long: Vec<String> = (0..4)
            .map(|n| format!("/srv/s/{n}{}", "x".repeat(90)))
            .collect();
        let comma = "/srv/s/co,mma";
        for directory in long.iter().map(String::as_str).chain([comma]) {
            host.run(&["mkdir", directory])?.ok()?;
            host.run(&["touch", &format!("{directory}/{}", directory.len())])?
                .ok()?;
        }
        for (lower, expected) in [
            (format!("{comma}:{}", long[0]), "13\n98"),
            (format!("{}:{comma}", long.join(":")), "13\n98"),
        ] {
            let options = format!("lowerdir={}", lower.replace(',', "\\,"));
            spc.mount(&["-t", "overlay", "-o", &options, "layers", "/mnt/b"])?;
            let files = host.sh("ls /mnt/b")?.ok()?.text();
            ensure!(files == expected, "{lower}: {files}");
            spc.umount("/mnt/b")?;
        }
        spc.is_clean()
    });
}

#[test]
fn a_disk_of_the_host_mounts_and_a_missing_one_is_named() {
    with_container(|spc| {
        let mut files = Vec::new();
        for (fstype, size, mkfs) in [
            ("ext4", 8, &["mkfs.ext4", "-q", "-F"][..]),
            // mkfs.xfs refuses to make a file system smaller than 300 MB.
            ("xfs", 32, &["mkfs.xfs", "-q", "--unsupported"][..]),
        ] {
            let Attached { device, file } = attach(&spc.host, size, mkfs)?;
            files.push(file);

            let mount = ["-t", fstype, "-o", "noatime", &device];
            spc.life(&mount, "/mnt/disk", [fstype, &device], |_| {
                spc.host.write("/mnt/disk/file", b"on disk")
            })?;
            let mount = ["-t", fstype, "-r", &device];
            spc.life(&mount, "/mnt/disk", [fstype, &device], |_| {
                ensure!(spc.host.read("/mnt/disk/file")? == b"on disk");
                let refused = spc.host.sh("echo x > /mnt/disk/file")?;
                ensure!(refused.error_text().contains("Read-only"), "{refused}");
                Ok(())
            })?;
        }
        let mount = ["-t", "ext4", &files[0], "/mnt/disk"];
        spc.refused_mount(&mount, 32, &["not a block device", "losetup"])?;
        let mount = ["-t", "ext4", "/dev/no-such-disk", "/mnt/disk"];
        spc.refused_mount(&mount, 32, &["/dev/no-such-disk", "No such file"])?;
        Ok(())
    });
}
