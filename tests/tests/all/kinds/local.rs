//! File systems that the kernel mounts without a helper, each with data on the host.

use anyhow::ensure;

use crate::support::images::{Attached, attach};
use crate::support::with_container;

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
                    "a bind of one mount only"
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
