//! CephFS from a real cluster, and that cluster itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Ceph, Session};

use crate::support::{Spc, until, with_lab};

/// Runs a test's body with the lab and its Ceph; where there is no lab, that has been said.
fn with_ceph(body: impl FnOnce(&'static lab::Lab, &'static Ceph<'static>) -> Result<()>) {
    with_lab(|lab| body(lab, lab::ceph().context("no cluster")?));
}

#[test]
fn a_ceph_cluster_keeps_files_and_images() {
    with_ceph(|_, ceph| {
        let host = ceph.host();
        host.write("/mnt/other/file", b"of the administrator")?;
        host.sh("sync -f /mnt/other/file")?.ok()?;
        let inode = ceph.sh("stat -c %i /mnt/other/file")?.trim().parse()?;
        ensure!(ceph.bytes(inode)? == b"of the administrator");
        let sessions = ceph.sessions("admin")?;
        ensure!(
            sessions.len() == 1 && sessions[0].root == "/" && !sessions[0].kernel,
            "{sessions:?}"
        );
        ceph.sh("rbd create --size 16M rbd/cluster")?;
        ensure!(ceph.watchers("cluster")?.is_empty());
        let keyring = ceph.keyring("app")?;
        ensure!(keyring.contains(ceph.secret("app")?.trim()), "{keyring}");
        Ok(())
    });
}

/// The key and the keyring of `client.app`, in the container.
const SECRET: &str = "/etc/app.secret";
const KEYRING: &str = "/etc/app.keyring";

/// What the mount table shows for a client.
const FUSE: [&str; 2] = ["fuse.ceph-fuse", "ceph-fuse"];

fn give_keys(spc: &Spc<'_>, ceph: &Ceph<'_>) -> Result<()> {
    // With a line break at its end, as editors leave it.
    spc.put(SECRET, format!("{}\n", ceph.secret("app")?).as_bytes())?;
    spc.put(KEYRING, format!("{}\n", ceph.keyring("app")?).as_bytes())
}

/// One mount's life, with a file that is then in the cluster: the bytes on the OSD, and the session of this host on the
/// metadata server, as long as the mount lasts and no longer.
fn used(
    spc: &Spc<'_>,
    ceph: &Ceph<'_>,
    arguments: &[&str],
    shows: [&str; 2],
    root: &str,
) -> Result<()> {
    let target = "/mnt/ceph";
    let host = spc.host.name();
    let sessions = || -> Result<Vec<Session>> {
        let all = ceph.sessions("app")?;
        Ok(all.into_iter().filter(|s| s.host == host).collect())
    };
    ensure!(sessions()?.is_empty(), "{:?}", sessions()?);
    spc.life(arguments, target, shows, |_| {
        let text = format!("{host}: {arguments:?}");
        // Others are at work in the same directory.
        let file = format!("{target}/{host}");
        spc.host.write(&file, text.as_bytes())?;
        spc.host.sh(&format!("sync {file}"))?.ok()?;
        let inode = spc.host.run(&["stat", "-c", "%i", &file])?.ok()?.text();
        ensure!(ceph.bytes(inode.trim().parse()?)? == text.as_bytes());
        let seen = sessions()?;
        ensure!(seen.len() == 1 && seen[0].root == root, "{seen:?}");
        ensure!(seen[0].kernel == (shows[0] == "ceph"), "{seen:?}");
        spc.host.run(&["rm", &file])?.ok()?;
        Ok(())
    })?;
    until("the session has ended", || Ok(sessions()?.is_empty()))
}

/// Every way to name the key, the monitors and the directory.
fn ways(spc: &Spc<'_>, ceph: &Ceph<'_>, fs_type: &str, shows: [&str; 2]) -> Result<()> {
    give_keys(spc, ceph)?;
    let (address, monitors, fsid) = (ceph.address(), ceph.monitors(), ceph.fsid());
    let mount = |options: &str, source: &str, root: &str| {
        let arguments = ["-t", fs_type, "-o", options, source];
        used(spc, ceph, &arguments, shows, root)
            .with_context(|| format!("mount {options} {source}"))
    };
    let file = format!("name=app,secretfile={SECRET}");
    let ring = format!("name=app,keyring={KEYRING}");
    mount(&file, &format!("{monitors}:/app"), "/app")?;
    mount(&ring, &format!("{address}:/app"), "/app")?;
    mount(&ring, &format!("{address}:/app/sub"), "/app/sub")?;
    // Nobody answers at the first address.
    mount(
        &file,
        &format!("192.0.2.254,{address}:/app/sub"),
        "/app/sub",
    )?;
    // The name of the file system.
    mount(
        &format!("{file},fs=cephfs"),
        &format!("{address}:/app"),
        "/app",
    )?;
    let device = format!("app@{fsid}.cephfs=/app");
    let options = format!("secretfile={SECRET},mon_addr=192.0.2.254/{address}");
    mount(&options, &device, "/app")?;
    Ok(())
}

#[test]
fn ceph_fuse_takes_over_where_the_kernel_has_no_ceph() {
    with_ceph(|lab, ceph| {
        let spc = Spc::least(lab)?;
        let source = format!("{}:/app", ceph.address());
        let explain = ["spc", "explain", "-t", "ceph", &source, "/mnt"];
        let plan = spc.exec(&explain)?.ok()?.text();
        ensure!(
            plan.contains("this kernel has no ceph") && plan.contains("/usr/bin/ceph-fuse"),
            "{plan}"
        );
        ways(&spc, ceph, "ceph", FUSE)
    });
}

#[test]
fn ceph_fuse_when_asked_for() {
    with_ceph(|lab, ceph| {
        let spc = Spc::usual(lab)?;
        give_keys(&spc, ceph)?;
        let options = format!("name=app,secretfile={SECRET}");
        let source = format!("{}:/app/sub", ceph.monitors());
        for fs_type in ["ceph-fuse", "fuse.ceph", "fuse.ceph-fuse"] {
            let arguments = ["-t", fs_type, "-o", &options, &source];
            used(&spc, ceph, &arguments, FUSE, "/app/sub")?;
        }
        Ok(())
    });
}

/// Read-only stays read-only, also when the client's program has its target remounted, as ceph-fuse does to empty the
/// kernel's caches.
fn read_only(spc: &Spc<'_>, ceph: &Ceph<'_>, fs_type: &str, shows: [&str; 2]) -> Result<()> {
    give_keys(spc, ceph)?;
    let host = &spc.host;
    ceph.sh("echo kept >/mnt/app/sub/read-only && sync -f /mnt/app/sub/read-only")?;
    let options = format!("ro,nosuid,noexec,name=app,secretfile={SECRET}");
    let source = format!("{}:/app/sub", ceph.address());
    let mount = ["-t", fs_type, "-o", &options, &source];
    spc.life(&mount, "/mnt/read only", shows, |_| {
        if shows == FUSE {
            // Its very words.
            let remount =
                "LIBMOUNT_FSTAB=/dev/null LIBMOUNT_FORCE_MOUNT2=always mount -i -o remount";
            spc.sh(&format!(
                "for dir in /spc/targets/*/; do {remount} $dir; done"
            ))?
            .ok()?;
        }
        ensure!(host.read("/mnt/read only/read-only")? == b"kept\n");
        let refused = host.sh("echo x >'/mnt/read only/read-only'")?;
        ensure!(refused.error_text().contains("Read-only"), "{refused}");
        let mounted = &spc.on("/mnt/read only")?[0];
        let options: Vec<_> = mounted.options.split(',').collect();
        for option in ["ro", "nosuid", "noexec"] {
            ensure!(options.contains(&option), "{mounted:?}");
        }
        Ok(())
    })
}

/// Snapshots are in `.snap`: those that others make are seen, and others see those that are made here.
fn snapshots(spc: &Spc<'_>, ceph: &Ceph<'_>, fs_type: &str, shows: [&str; 2]) -> Result<()> {
    give_keys(spc, ceph)?;
    let host = &spc.host;
    let dir = format!("{}-{fs_type}", host.name());
    ceph.sh(&format!(
        "mkdir /mnt/app/{dir} && cd /mnt/app/{dir} && echo first >file && mkdir .snap/theirs && echo second >file && sync -f file"
    ))?;
    let options = format!("name=app,secretfile={SECRET}");
    let source = format!("{}:/app/{dir}", ceph.address());
    let mount = ["-t", fs_type, "-o", &options, &source];
    spc.life(&mount, "/mnt/snapshots", shows, |_| {
        ensure!(host.read("/mnt/snapshots/file")? == b"second\n");
        ensure!(host.read("/mnt/snapshots/.snap/theirs/file")? == b"first\n");
        host.sh("cd /mnt/snapshots && mkdir .snap/ours && echo third >file && sync file")?
            .ok()?;
        ensure!(host.read("/mnt/snapshots/.snap/ours/file")? == b"second\n");
        let there = ceph.sh(&format!(
            "cd /mnt/app/{dir} && ls .snap && cat .snap/ours/file"
        ))?;
        ensure!(there == "ours\ntheirs\nsecond", "{there:?}");
        host.sh("rmdir /mnt/snapshots/.snap/ours")?.ok()?;
        Ok(())
    })
}

/// A key that is given instead of a file reaches the client, and stands in no argument, no environment, no record and no
/// log.
fn secrets(spc: &Spc<'_>, ceph: &Ceph<'_>, fs_type: &str, shows: [&str; 2]) -> Result<()> {
    let key = ceph.secret("app")?;
    give_keys(spc, ceph)?;
    let source = format!("{}:/app", ceph.address());
    let given = format!("name=app,secret={key}");
    let from_file = format!("secret=file:{SECRET}");
    for words in [
        vec!["-t", fs_type, "-o", &given, &source],
        vec![
            "-t", fs_type, "-o", "name=app", "--secret", &from_file, &source,
        ],
    ] {
        spc.life(&words, "/mnt/secret", shows, |record| {
            spc.host.write("/mnt/secret/file", b"by a secret")?;
            ensure!(!record.to_string().contains(&key), "{record}");
            let places = "/run/spc /proc/[0-9]*/cmdline /proc/[0-9]*/environ";
            // Not the processes that look.
            let script = format!("read key; grep -rlsF \"$key\" {places}; true");
            let found = spc
                .host
                .command(&["sh", "-c", &script])?
                .input(format!("{key}\n").as_bytes())?
                .run()?
                .ok()?;
            ensure!(found.text().is_empty(), "{found}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What a helper leaves that was killed between its mount and the note of it is found, and taken away.
fn half_made(spc: &Spc<'_>, ceph: &Ceph<'_>, fs_type: &str) -> Result<()> {
    give_keys(spc, ceph)?;
    let target = "/mnt/half made";
    spc.host.run(&["mkdir", "-p", target])?.ok()?;
    let options = format!("name=app,secretfile={SECRET}");
    let source = format!("{}:/app", ceph.address());
    let mount = [
        "spc", "mount", "-t", fs_type, "-o", &options, &source, target,
    ];
    spc.exec(&mount)?.ok()?;
    // Neither claim nor record know of the mount, as if their maker had died.
    spc.sh("rm /spc/targets/*.mount")?.ok()?;
    let forget = r#"s/"state":"mounted"/"state":"mounting"/; s/"mount_id":[0-9]*/"mount_id":0/; s/"unique_id":[0-9]*/"unique_id":0/"#;
    let file = "/run/spc/mounts/*.json";
    spc.host.sh(&format!("sed -i '{forget}' {file}"))?.ok()?;
    until("it is undone", || Ok(spc.on(target)?.is_empty()))?;
    spc.is_clean()
}

#[test]
fn ceph_fuse_read_only_and_snapshots() {
    with_ceph(|lab, ceph| {
        let spc = Spc::least(lab)?;
        half_made(&spc, ceph, "ceph")?;
        read_only(&spc, ceph, "ceph", FUSE)?;
        snapshots(&spc, ceph, "ceph", FUSE)
    });
}

#[test]
fn ceph_fuse_with_a_key_that_is_in_no_file() {
    with_ceph(|lab, ceph| secrets(&Spc::least(lab)?, ceph, "ceph", FUSE));
}

#[test]
fn ceph_fuse_refused() {
    with_ceph(|lab, ceph| {
        let spc = Spc::least(lab)?;
        give_keys(&spc, ceph)?;
        spc.host.sh("mkdir -p /mnt/ceph")?.ok()?;
        spc.put("/etc/other.secret", ceph.secret("disk")?.as_bytes())?;
        let good = format!("name=app,secretfile={SECRET}");
        for (options, source, says) in [
            ("name=app,secretfile=/etc/other.secret", "/app", "this key"),
            ("name=app", "/app", "name the user"),
            ("name=app,secretfile=/none", "/app", "name the user"),
            (&good, "/app/none", "no such directory"),
            (&good, "/other", "non-allowable root '/other'"),
            (&format!("{good},fs=none"), "/app", "`ceph fs ls`"),
            (&format!("{good},nosuchoption"), "/app", "nosuchoption"),
        ] {
            let source = format!("{}:{source}", ceph.address());
            let words = [
                "spc",
                "mount",
                "-t",
                "ceph",
                "-o",
                options,
                &source,
                "/mnt/ceph",
            ];
            spc.refused(&words, 32, &[says])?;
        }
        let dead = "192.0.2.254:/app";
        let options = format!("{good},mount_timeout=3");
        let words = [
            "spc",
            "mount",
            "-t",
            "ceph",
            "-o",
            &options,
            dead,
            "/mnt/ceph",
        ];
        let output = spc.refused(&words, 32, &["addresses of the monitors"])?;
        ensure!(output.elapsed < Duration::from_secs(10), "{output}");
        let words = [
            "spc",
            "mount",
            "-t",
            "ceph",
            "--timeout",
            "2",
            "-o",
            &good,
            dead,
            "/mnt/ceph",
        ];
        let output = spc.refused(&words, 32, &["ended by spc after 2 s"])?;
        ensure!(output.elapsed < Duration::from_secs(10), "{output}");
        Ok(())
    });
}
