//! FUSE programs. Each test reads and writes through the mount, and checks where the data is kept.

use std::path::Path;

use anyhow::{Result, ensure};
use lab::{AnyHost, Host, HostOptions, Lab, ObjectStore, Root};

use crate::support::{Container, Spc, VmSpc, with_container, with_lab, with_minimal_container};

/// Mounts a directory of the container by bindfs. bindfs is linked with libfuse 2 and has no row in
/// the table of kinds.
fn bindfs<H: AnyHost>(spc: &Container<H>, source: &str) -> Result<()> {
    let host = &spc.host;
    spc.sh(&format!("mkdir -p {source} && echo through >{source}/file"))?
        .ok()?;
    let options = "allow_other,perms=0644:a+X";
    let mount = ["-t", "fuse.bindfs", "-o", options, source];
    spc.life(&mount, "/mnt/bindfs", ["fuse", source], |record| {
        ensure!(
            record["route"] == "preload" && record["daemon"][0].is_number(),
            "{record}"
        );
        ensure!(host.read("/mnt/bindfs/file")? == b"through\n");
        host.write("/mnt/bindfs/new", b"written through")?;
        ensure!(spc.sh(&format!("cat {source}/new"))?.ok()?.text() == "written through");
        Ok(())
    })
}

/// Boots an SSH server that accepts the key in `/root/key`.
pub fn sshd(lab: &Lab) -> Result<Host<'_>> {
    const START: &str = "
        mkdir -p /run/sshd /srv/data && ssh-keygen -q -A && ssh-keygen -q -t ed25519 -N '' -f /root/key
        install -D -m 600 /root/key.pub /root/.ssh/authorized_keys
        /usr/sbin/sshd -o UsePAM=no
    ";
    let server = lab.host(HostOptions {
        root: Root::Server,
        ..HostOptions::default()
    })?;
    server.sh(START)?.ok()?;
    server.write("/srv/data/file", b"on the server")?;
    Ok(server)
}

/// Mounts a directory of an SSH server by sshfs, which is linked with libfuse 3. The key file is in
/// the container at `key`.
fn sshfs<H: AnyHost>(spc: &Container<H>, server: &Host<'_>, key: &str) -> Result<()> {
    let host = &spc.host;
    spc.put(key, &server.read("/root/key")?)?;
    spc.sh(&format!("chmod 600 {key}"))?.ok()?;
    let source = format!("root@{}:/srv/data", server.address());
    let options = |key: &str| {
        format!(
            "IdentityFile={key},StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,BatchMode=yes"
        )
    };
    let good = options(key);
    let mount = ["-t", "fuse.sshfs", "-o", &good, &source];
    spc.life(&mount, "/mnt/ssh", ["fuse.sshfs", &source], |record| {
        ensure!(record["route"] == "preload", "{record}");
        ensure!(host.read("/mnt/ssh/file")? == b"on the server");
        host.write("/mnt/ssh/new", b"written on the host")?;
        ensure!(server.read("/srv/data/new")? == b"written on the host");
        Ok(())
    })?;
    let bad = options(&format!("{key}-which-is-not-there"));
    let mount = ["-t", "fuse.sshfs", "-o", &bad, &source, "/mnt/ssh"];
    spc.refused_mount(&mount, 32, &["Permission denied"])
        .map(drop)
}

#[test]
fn bindfs_mounts_a_directory_of_the_host() {
    with_container(|spc| bindfs(spc, "/host/srv/source"));
}

/// A policy of the host may forbid scopes, and with them the usual cgroup of a daemon.
#[test]
fn a_daemon_has_its_own_cgroup_where_systemd_refuses_a_scope() {
    const REFUSES: &[u8] =
        b"#!/bin/sh\necho 'Failed to start scope unit: Access denied' >&2\nexit 1\n";
    with_minimal_container(|spc| {
        let host = &spc.host;
        host.write("/usr/bin/systemd-run", REFUSES)?;
        host.sh("chmod 755 /usr/bin/systemd-run && mkdir -p /run/systemd/system")?
            .ok()?;
        let report = spc.exec(&["spc", "doctor"])?.ok()?.text();
        ensure!(
            report.contains("systemd refuses scopes: Failed to start scope unit: Access denied"),
            "{report}"
        );
        host.sh("mkdir -p /srv/source /mnt/data")?.ok()?;
        let mount = ["-t", "fuse.bindfs", "/host/srv/source", "/mnt/data"];
        spc.mount(&mount)?;
        let daemon = spc.record("/mnt/data")?["daemon"][0].to_string();
        let cgroup = host.run(&["cat", &format!("/proc/{daemon}/cgroup")])?;
        ensure!(cgroup.text().contains("/spc/mnt-data"), "{cgroup}");
        spc.umount("/mnt/data")?;
        let left = host.sh("find /sys/fs/cgroup -path '*spc/mnt-data*'")?;
        ensure!(left.stdout.is_empty(), "{left}");
        spc.is_clean()
    });
}

#[test]
fn sshfs_mounts_a_directory_of_a_server() {
    with_lab(|lab| sshfs(&Spc::privileged(lab)?, &sshd(lab)?, "/host/root/key"));
}

#[test]
fn fuse_programs_mount_on_a_virtual_machine() {
    with_lab(|lab| {
        let (spc, store) = (VmSpc::privileged(lab)?, lab.s3()?);
        bindfs(&spc, "/srv/source")?;
        let server = sshd(lab)?;
        sshfs(&spc, &server, "/run/key-of-ssh")?;
        // This container has no bind of the host's root.
        let source = format!("root@{}:/srv/data", server.address());
        let options = "x-spc.container,StrictHostKeyChecking=no,BatchMode=yes";
        let mount = ["-t", "sshfs", "-o", options, &source, "/mnt"];
        spc.refused_mount(&mount, 32, &["IdentityFile=", "has no /host"])?;
        bucket(&spc, &store)?;
        spc.is_clean()
    });
}

/// Mounts by fuse2fs, a libfuse 3 program without a row, whose mounts show another type than its
/// name. Its source is an ext4 image.
#[test]
fn a_fuse_program_without_a_row_mounts() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        let library = format!(
            "/usr/lib/{}-linux-gnu/libext2fs.so.2",
            std::env::consts::ARCH
        );
        let other = lab.host(HostOptions {
            root: Root::Shares,
            ..HostOptions::default()
        })?;
        for file in ["/usr/bin/fuse2fs", &library] {
            spc.put(file, &other.read(file)?)?;
        }
        let linked = spc.sh("ldd /usr/bin/fuse2fs")?.ok()?.text();
        ensure!(
            linked.contains("libfuse3.so") && !linked.contains("not found"),
            "{linked}"
        );
        let image =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-fuse2fs", std::process::id()));
        std::fs::File::create(&image)?.set_len(8 * 1024 * 1024)?;
        let made = std::process::Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&image)
            .status()?;
        ensure!(made.success(), "{made}");
        spc.host.copy_in(&image, "/srv/image")?;
        std::fs::remove_file(&image)?;
        let source = "/host/srv/image";
        let mount = ["-t", "fuse.fuse2fs", "-o", "fakeroot", source];
        for _ in 0..2 {
            spc.life(&mount, "/mnt/image", ["fuse.ext4", source], |record| {
                ensure!(record["route"] == "preload", "{record}");
                spc.host.sh("cd /mnt/image && echo kept >>file")?.ok()?;
                Ok(())
            })?;
        }
        let mount = ["-r", "-t", "fuse.fuse2fs", source];
        spc.life(&mount, "/mnt/image", ["fuse.ext4", source], |_| {
            ensure!(spc.host.read("/mnt/image/file")? == b"kept\nkept\n");
            Ok(())
        })
    });
}

/// Mounts a bucket by s3fs and checks the objects. The key comes from a file.
fn bucket<H: AnyHost>(spc: &Container<H>, store: &ObjectStore<'_>) -> Result<()> {
    let host = &spc.host;
    spc.put("/run/key", store.key().as_bytes())?;
    let options = format!("use_path_request_style,url={}", store.open());
    let mount = [
        "-t",
        "fuse.s3fs",
        "-o",
        &options,
        "--secret",
        "passwd=file:/run/key",
        "bucket",
    ];
    spc.life(&mount, "/mnt/s3", ["fuse.s3fs", "bucket"], |record| {
        ensure!(record["route"] == "preload", "{record}");
        host.write("/mnt/s3/file", b"written on the host")?;
        host.sh("cd /mnt/s3 && mkdir dir && mv file dir/moved && ls dir | grep -qx moved")?
            .ok()?;
        ensure!(store.object("dir/moved")? == b"written on the host");
        // s3fs uploads a big object in parts.
        let big = host
            .sh("head -c 30000000 /dev/urandom | tee /mnt/s3/big")?
            .ok()?;
        ensure!(big.stdout.len() == 30_000_000);
        ensure!(
            store.object("big")? == big.stdout,
            "the bucket has other bytes"
        );
        Ok(())
    })?;
    let read_only = ["-o", "ro", "-t", "fuse.s3fs", "-o", &options, "--secret"];
    let mount = [&read_only[..], &["passwd=file:/run/key", "bucket:/dir"]].concat();
    spc.life(&mount, "/mnt/s3", ["fuse.s3fs", "bucket:/dir"], |_| {
        ensure!(host.read("/mnt/s3/moved")? == b"written on the host");
        let refused = host.sh("echo x >/mnt/s3/new")?;
        ensure!(refused.error_text().contains("Read-only"), "{refused}");
        Ok(())
    })
}

#[test]
fn s3fs_mounts_a_bucket() {
    with_lab(|lab| {
        let store = lab.s3()?;
        bucket(&Spc::privileged(lab)?, &store)
    });
}

#[test]
fn s3fs_says_why_it_cannot_mount() {
    with_lab(|lab| {
        let store = lab.s3()?;
        let spc = Spc::minimal(lab)?;
        spc.host.sh("mkdir -p /mnt/s3")?.ok()?;
        let (guarded, key) = (store.guarded(), store.key());
        let attempt = |options: &str, key: &str, source: &str| -> Result<Vec<String>> {
            spc.put("/run/key", key.as_bytes())?;
            spc.sh("chmod 600 /run/key")?.ok()?;
            let options = format!("sigv4,use_path_request_style{options}");
            let words = [
                "spc",
                "mount",
                "-t",
                "fuse.s3fs",
                "-o",
                &options,
                source,
                "/mnt/s3",
            ];
            Ok(words.map(str::to_owned).to_vec())
        };
        let refused = |words: Vec<String>, expected: &[&str]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            spc.refused(&words, 32, expected)
        };
        let url = format!(",passwd_file=/run/key,url={guarded}");

        // The server checks signatures: the right key gets access.
        let words = attempt(&url, key, "bucket")?;
        let words: Vec<&str> = words.iter().skip(2).map(String::as_str).collect();
        let [words @ .., _] = words.as_slice() else {
            unreachable!()
        };
        spc.life(words, "/mnt/s3", ["fuse.s3fs", "bucket"], |_| {
            spc.host.write("/mnt/s3/file", b"signed")?;
            ensure!(spc.host.read("/mnt/s3/file")? == b"signed");
            Ok(())
        })?;

        let (id, secret) = key.split_once(':').unwrap_or_default();
        let wrong = attempt(&url, &format!("{id}:not{secret}"), "bucket")?;
        let output = refused(wrong, &["Invalid Credentials", "passwd_file"])?;
        ensure!(!format!("{output}").contains(secret), "{output}");
        let nowhere = attempt(&url, key, "no-bucket")?;
        refused(nowhere, &["not found", "check the bucket"])?;
        let without = attempt(&format!(",url={guarded}"), key, "bucket")?;
        refused(without, &["security credentials", "name the key"])?;
        store.stop()?;
        let down = attempt(&url, key, "bucket")?;
        refused(down, &["Unable to connect", "can reach the server"])?;
        Ok(())
    });
}
