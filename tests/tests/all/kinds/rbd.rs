//! RBD images of a real cluster, mapped by the kernel of a virtual machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Ceph, Output};

use crate::support::images::{ext4, on, xfs};
use crate::support::{VmSpc, until, with_vm};

const MIB: u64 = 1024 * 1024;

/// File in the container with the key of `client.disk`.
const SECRET: &str = "/etc/disk.secret";

/// The container, and the cluster that it mounts from.
struct Client<'a> {
    spc: &'a VmSpc<'static>,
    ceph: &'static Ceph<'static>,
    /// Options that name the monitor, the user and the key.
    access: String,
}

/// Runs a test's body with a new client. Does nothing where the lab cannot run; the lab prints the
/// reason.
fn with_client(body: impl FnOnce(&Client<'_>) -> Result<()>) {
    with_vm(|spc| {
        let ceph = lab::ceph().context("no cluster")?;
        let line = |text: String| format!("{text}\n").into_bytes();
        spc.put(SECRET, &line(ceph.secret("disk")?))?;
        spc.put("/etc/disk.keyring", &line(ceph.keyring("disk")?))?;
        let access = format!("id=disk,mon={},keyfile={SECRET}", ceph.address());
        body(&Client { spc, ceph, access })
    });
}

impl Client<'_> {
    /// Runs `spc mount ARGUMENTS TARGET`, and creates TARGET first.
    fn mount(&self, arguments: &[&str], target: &str) -> Result<Output> {
        self.spc.host.run(&["mkdir", "-p", target])?.ok()?;
        self.spc
            .exec(&[&["spc", "mount"], arguments, &[target]].concat())
    }

    fn umount(&self, target: &str) -> Result<()> {
        self.spc.umount(target).map(drop)
    }

    /// Number of images that the host has mapped.
    fn mapped(&self) -> Result<usize> {
        let list = self.spc.host.sh("ls /sys/bus/rbd/devices 2>/dev/null")?;
        Ok(list.text().lines().count())
    }

    /// Checks that no client watches these images, and that the host has nothing of them.
    fn is_clean(&self, images: &[&str]) -> Result<()> {
        ensure!(self.mapped()? == 0, "{} images are mapped", self.mapped()?);
        for image in images {
            let watchers = self.ceph.watchers(image)?;
            ensure!(watchers.is_empty(), "{image}: {watchers:?}");
        }
        let left = self.spc.host.sh("ls -A /run/spc/devices")?.text();
        ensure!(left.is_empty(), "left attachments: {left}");
        self.spc.is_clean()
    }

    /// Returns whether an image in the cluster contains these bytes.
    fn found(&self, image: &str, bytes: &[u8]) -> Result<bool> {
        let all = self.ceph.content(image)?;
        Ok(all.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Checks that a mount is refused with these words, and that no byte of the image changes.
    fn untouched(&self, image: &str, options: &str, expected: &str) -> Result<()> {
        let before = self.ceph.content(image)?;
        let options = format!("{options}{}", self.access);
        let source = format!("rbd:rbd/{image}");
        self.refused(&["-t", "xfs", "-o", &options, &source], expected)?;
        ensure!(self.ceph.content(image)? == before, "{image} was changed");
        self.is_clean(&[image])
    }

    fn refused(&self, arguments: &[&str], expected: &str) -> Result<Output> {
        self.spc.host.sh("mkdir -p /mnt/refused")?.ok()?;
        let words = [arguments, &["/mnt/refused"]].concat();
        self.spc.refused_mount(&words, 32, &[expected])
    }
}

/// Makes a file system that e2fsck takes for one that was not unmounted.
fn dirty(path: &Path) -> Result<()> {
    ext4(path)?;
    on(path, &["debugfs", "-w", "-R", "set_super_value state 0"])
}

/// Writes half a partition table: its signature only.
fn half_a_table(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    Ok(std::fs::write(path, bytes)?)
}

/// Writes one unknown byte in the middle.
fn one_byte(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2 + 12345;
    bytes[middle] = 1;
    Ok(std::fs::write(path, bytes)?)
}

#[test]
fn an_image_is_mapped_once_and_unmapped_by_its_last_user() {
    with_client(|client| {
        let Client { spc, ceph, access } = client;
        let host = &spc.host;
        ceph.image("shared", 64 * MIB, dirty)?;
        ceph.image("second", 320 * MIB, xfs)?;
        let first = ["-t", "ext4", "-o", access, "rbd:rbd/shared"];
        let checked = client.mount(&[&["-v"], &first[..]].concat(), "/mnt/one")?;
        ensure!(checked.ok()?.error_text().contains("e2fsck"));
        client.mount(&first, "/mnt/two")?.ok()?;
        ensure!(client.mapped()? == 1 && ceph.watchers("shared")?.len() == 1);
        // spc reads the file system type from the image. The key comes as a secret, and one monitor
        // is dead.
        let options = format!("id=disk,mon=192.0.2.254;{}", ceph.address());
        let secret = format!("secret=file:{SECRET}");
        let second = ["-o", &options, "--secret", &secret, "rbd:rbd/second"];
        client.mount(&second, "/mnt/three")?.ok()?;
        ensure!(client.mapped()? == 2 && ceph.watchers("second")?.len() == 1);
        let record = spc.record("/mnt/three")?;
        ensure!(
            record["state"] == "ok" && record["source"] == "rbd:rbd/second",
            "{record}"
        );
        let key = ceph.secret("disk")?;
        let places =
            "/run/spc /proc/[0-9]*/cmdline /proc/[0-9]*/environ /sys/bus/rbd/devices/*/config_info";
        let search = format!("cat >/tmp/key; grep -rlsF -f /tmp/key {places}; rm /tmp/key");
        let search = host.command(&["sh", "-c", &search]).input(key.as_bytes());
        let found = search.run()?.ok()?;
        ensure!(found.stdout.is_empty(), "{found}");

        ensure!(host.read("/mnt/two/greeting")? == b"from the server");
        host.write("/mnt/two/file", b"written to an image")?;
        ensure!(host.read("/mnt/one/file")? == b"written to an image");
        client.umount("/mnt/one")?;
        ensure!(host.read("/mnt/two/file")? == b"written to an image");
        ensure!(client.mapped()? == 2 && ceph.watchers("shared")?.len() == 1);
        client.umount("/mnt/two")?;
        ensure!(client.mapped()? == 1 && ceph.watchers("shared")?.is_empty());
        ensure!(client.found("shared", b"written to an image")?);
        // The host unmounts by itself, as kubelet does.
        host.run(&["umount", "/mnt/three"])?.ok()?;
        until("the image is unmapped", || Ok(client.mapped()? == 0))?;
        until("its record is removed", || {
            Ok(client.is_clean(&["shared", "second"]).is_ok())
        })
    });
}

#[test]
fn an_image_is_formatted_only_if_it_is_blank() {
    with_client(|client| {
        let Client { spc, ceph, access } = client;
        ceph.sh("rbd create --size 320M rbd/blank")?;
        ceph.image("table", 64 * MIB, half_a_table)?;
        ceph.image("byte", 16 * MIB, one_byte)?;
        ceph.image("other", 64 * MIB, ext4)?;
        client.untouched("blank", "", "no file system is on rbd:rbd/blank")?;
        let both = format!("ro,x-spc.mkfs,{access}");
        let both = ["-t", "xfs", "-o", &both, "rbd:rbd/blank", "/mnt"];
        spc.refused_mount(&both, 1, &["read-only"])?;
        client.untouched("table", "x-spc.mkfs,", "rbd:rbd/table")?;
        client.untouched("byte", "x-spc.mkfs,", "rbd:rbd/byte")?;
        client.untouched("other", "x-spc.mkfs,", "ext4")?;
        let options = format!("x-spc.mkfs,{access}");
        let made = ["-t", "xfs", "-o", &options, "rbd:rbd/blank"];
        client.mount(&made, "/mnt/made")?.ok()?;
        spc.host.write("/mnt/made/file", b"on a new file system")?;
        client.umount("/mnt/made")?;
        client.is_clean(&["blank"])?;
        ensure!(ceph.content("blank")?.starts_with(b"XFSB"));
        ensure!(client.found("blank", b"on a new file system")?);
        // The same request finds the file system and leaves it as it is.
        client.mount(&made, "/mnt/made")?.ok()?;
        ensure!(spc.host.read("/mnt/made/file")? == b"on a new file system");
        client.umount("/mnt/made")?;
        // Read-only, with a keyring.
        let options = format!(
            "ro,id=disk,mon={},keyring=/etc/disk.keyring",
            ceph.address()
        );
        let mount = ["-t", "xfs", "-o", &options, "rbd:rbd/blank"];
        client.mount(&mount, "/mnt/made")?.ok()?;
        ensure!(
            spc.host
                .sh("echo x >/mnt/made/file")?
                .error_text()
                .contains("Read-only")
        );
        client.umount("/mnt/made")
    });
}

#[test]
fn rbd_says_why_it_refuses() {
    with_client(|client| {
        let Client { spc, ceph, access } = client;
        ceph.image("good", 16 * MIB, ext4)?;
        spc.put("/etc/app.secret", ceph.secret("app")?.as_bytes())?;
        let monitor = ceph.address();
        let wrong = format!("id=disk,mon={monitor},keyfile=/etc/app.secret");
        let none = format!("id=disk,mon={monitor}");
        for (options, source, expected) in [
            (&wrong, "rbd:rbd/good", "does not take this key"),
            (&none, "rbd:rbd/good", "name the user and the key"),
            (access, "rbd:rbd/none", "check the image"),
            (access, "rbd:none/good", "check the pool"),
        ] {
            client.refused(&["-t", "ext4", "-o", options, source], expected)?;
        }
        let dead = format!("id=disk,mon=192.0.2.254,keyfile={SECRET}");
        let dead = ["-t", "ext4", "-o", &dead, "rbd:rbd/good"];
        let output = client.refused(&dead, "check the monitors")?;
        ensure!(output.elapsed < Duration::from_secs(60), "{output}");
        let bounded = [&["--timeout", "3"], &dead[..]].concat();
        let output = client.refused(&bounded, "killed by spc after 3 s")?;
        ensure!(output.elapsed < Duration::from_secs(30), "{output}");
        client.is_clean(&["good"])
    });
}
