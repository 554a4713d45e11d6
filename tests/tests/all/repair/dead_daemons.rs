//! Mounts whose daemon dies. A new mount replaces each, and processes see nothing else at the
//! target.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Host, Kill, Status, Victim};
use serde_json::Value;

use crate::crash::fixture::{Case, Scene};
use crate::kinds::fuse::sshd;
use crate::support::{
    Container, Spc, until, with_container, with_gluster, with_lab, with_minimal_container, with_vm,
};

const TARGET: &str = "/mnt/data";

/// Directory of the container: the mount's daemon runs there.
const INSIDE: &str = "/srv/source";

/// Directory of the host: the mount's daemon runs in a client root file system.
const OUTSIDE: &str = "/host/srv/source";

/// Mounts a directory by bindfs with these options. The file content differs from the target's
/// below the mount.
fn bindfs<H: AnyHost>(spc: &Container<H>, source: &str, options: &str) -> Result<()> {
    let fill = |source: &str| {
        format!("mkdir -p {source}/sub && echo through | tee {source}/file >{source}/sub/file")
    };
    match source.strip_prefix("/host") {
        Some(source) => spc.host.sh(&fill(source))?.ok()?,
        None => spc.sh(&fill(source))?.ok()?,
    };
    let below = "mkdir -p /mnt/data && echo underneath >/mnt/data/file";
    spc.host.sh(below)?.ok()?;
    mount(spc, &["-t", "fuse.bindfs", "-o", options, source])
}

fn mount<H: AnyHost>(spc: &Container<H>, arguments: &[&str]) -> Result<()> {
    spc.host.run(&["mkdir", "-p", TARGET])?.ok()?;
    spc.mount(&[arguments, &[TARGET]].concat())?;
    Ok(())
}

/// The only mount on the target, with its unique id, and its record in `spc ls`.
pub fn only<H: AnyHost>(spc: &Container<H>) -> Result<(u64, Value)> {
    let (on, record) = (spc.on(TARGET)?, spc.record(TARGET)?);
    ensure!(
        on.len() == 1 && record["mount_id"] == on[0].id,
        "{on:?} {record}"
    );
    Ok((on[0].id, record))
}

/// Kills the daemons that `spc ls` names for the mount.
pub fn kill<H: AnyHost>(spc: &Container<H>) -> Result<()> {
    let (_, record) = only(spc)?;
    let daemons = record["daemon"].as_array().context("no daemon")?;
    let daemons: Vec<String> = daemons.iter().map(ToString::to_string).collect();
    ensure!(!daemons.is_empty(), "{record}");
    // All at once: sshfs would unmount cleanly if its ssh died first.
    let daemons = daemons.join(" ");
    spc.sh(&format!("kill -STOP {daemons}; kill -9 {daemons}"))?
        .ok()?;
    Ok(())
}

/// Waits until another mount is there and responds. Returns how long that took.
pub fn is_repaired<H: AnyHost>(spc: &Container<H>, dead: u64) -> Result<Duration> {
    let killed = Instant::now();
    let repaired = until("a new mount is on the target", || {
        let (mount, record) = match only(spc) {
            Ok(found) => found,
            Err(_) => return Ok(false),
        };
        Ok(mount != dead && record["state"] == "ok")
    });
    repaired.with_context(|| log(spc))?;
    Ok(killed.elapsed())
}

fn log<H: AnyHost>(spc: &Container<H>) -> String {
    spc.log().unwrap_or_else(|error| error.to_string())
}

/// Opens and reads a file repeatedly while `during` runs. Returns what was seen, each change once.
fn seen<H: AnyHost>(
    spc: &Container<H>,
    during: impl FnOnce() -> Result<()>,
) -> Result<Vec<String>> {
    const READER: &str = "
        rm -f /tmp/stop /tmp/seen
        (
            last=
            until [ -e /tmp/stop ]; do
                word=failed
                { read -r word </mnt/data/file || word=failed; } 2>/dev/null
                [ \"$word\" = \"$last\" ] || echo \"$word\"
                last=$word
            done >/tmp/seen
            echo end >>/tmp/seen
        ) >/dev/null 2>&1 &
    ";
    spc.host.sh(READER)?.ok()?;
    let done = during();
    spc.host.sh("touch /tmp/stop")?.ok()?;
    done?;
    let mut words = Vec::new();
    until("the reader has ended", || {
        let text = String::from_utf8(spc.host.read("/tmp/seen")?)?;
        words = text.lines().map(str::to_owned).collect();
        Ok(words.last().is_some_and(|word| word == "end"))
    })?;
    words.pop();
    Ok(words)
}

/// Kills the daemon, and checks that the mount alone is new afterwards.
fn a_kill_is_repaired<H: AnyHost>(spc: &Container<H>, source: &str, method: &str) -> Result<()> {
    let before = spc.traces()?;
    bindfs(spc, source, "allow_other")?;
    let tables = spc.host.tables()?;
    let mut times = Vec::new();
    let words = seen(spc, || {
        for _ in 0..2 {
            let (dead, _) = only(spc)?;
            kill(spc)?;
            times.push(is_repaired(spc, dead)?);
        }
        Ok(())
    })?;
    eprintln!("{source}, {method}: another mount was in place after {times:.1?}");
    let log = log(spc);
    let after = log.rsplit("serving").next().unwrap_or_default();
    let methods = after.matches(&format!("way=\"{method}\"")).count();
    ensure!(methods >= 2, "{log}");
    if method == "swap" {
        ensure!(
            words.last().is_some_and(|word| word == "through"),
            "{words:?}"
        );
    } else {
        let expected = ["through", "failed", "through", "failed", "through"];
        ensure!(words == expected, "{words:?}\n{log}");
    }
    // A running command has a mount table of its own for a moment.
    let grown = until("no table has grown", || {
        let now = spc.host.tables()?;
        Ok(tables
            .iter()
            .all(|(namespace, lines)| now.get(namespace).is_none_or(|n| n <= lines)))
    });
    grown.with_context(|| format!("{tables:?} became {:?}\n{log}", spc.host.tables()))?;
    ensure!(spc.host.read("/mnt/data/sub/file")? == b"through\n");
    spc.umount(TARGET)?;
    spc.host.run(&["rm", "/mnt/data/file"])?.ok()?;
    let after = spc.traces()?;
    ensure!(after == before, "left: {after:#?}\nwas: {before:#?}");
    Ok(())
}

#[test]
fn a_mount_whose_daemon_was_killed_is_replaced_without_a_gap() {
    with_container(|spc| {
        for source in [INSIDE, OUTSIDE] {
            a_kill_is_repaired(spc, source, "beneath")?;
        }
        let log = log(spc);
        ensure!(log.contains("killed by signal 9"), "{log}");
        spc.is_clean()
    });
}

#[test]
fn minimal_privileges_suffice_to_repair() {
    with_minimal_container(|spc| a_kill_is_repaired(spc, OUTSIDE, "beneath"));
}

#[test]
fn repair_on_a_kernel_that_cannot_mount_beneath() {
    with_vm(|spc| {
        a_kill_is_repaired(spc, INSIDE, "peer")?;
        spc.host.sh("mount --make-private /")?.ok()?;
        a_kill_is_repaired(spc, OUTSIDE, "swap")?;
        spc.is_clean()
    });
}

#[test]
fn containers_that_bound_the_dead_mount_are_repaired_when_asked() {
    with_container(|spc| {
        for (options, repaired) in [
            ("allow_other,x-spc.repair=containers", true),
            ("allow_other", false),
        ] {
            bindfs(spc, OUTSIDE, options)?;
            let start = "
                mkdir -p /mnt/bound && mount --bind /mnt/data/sub /mnt/bound
                docker run -d --name user -v /mnt/data:/data -v /mnt/data/sub:/sub:ro -v /mnt/data/file:/file \
                    --entrypoint sleep localhost/spc:latest 1000
            ";
            spc.host.sh(start)?.ok()?;
            let inside = |script: &str| {
                spc.host
                    .run(&["docker", "exec", "user", "sh", "-c", script])
            };
            let table = || -> Result<String> {
                let table = inside("cat /proc/1/mountinfo")?.ok()?.text();
                let bound = table.lines().filter(|line| line.contains("fuse"));
                let fields = bound.map(|line| {
                    line.split(' ')
                        .skip(3)
                        .take(4)
                        .collect::<Vec<_>>()
                        .join(" ")
                });
                let mut fields = fields.collect::<Vec<_>>();
                fields.sort();
                Ok(fields.join("\n"))
            };
            let before = table()?;
            ensure!(before.lines().count() == 3, "{before}");
            let (dead, _) = only(spc)?;
            kill(spc)?;
            is_repaired(spc, dead)?;
            let read = || inside("cat /data/file /sub/file /file");
            if repaired {
                until("the container reads again", || {
                    Ok(read()?.text() == "through\nthrough\nthrough")
                })
                .with_context(|| {
                    format!(
                        "{}\n{}",
                        log(spc),
                        read().map_or(String::new(), |o| o.to_string())
                    )
                })?;
                let refused = inside("echo x >/sub/file")?;
                ensure!(refused.error_text().contains("Read-only"), "{refused}");
                inside("echo written >/data/new")?.ok()?;
                ensure!(spc.host.read("/mnt/bound/file")? == b"through\n");
                ensure!(spc.on("/mnt/bound")?.len() == 1);
                ensure!(table()? == before, "{} was {before}", table()?);
            } else {
                let refused = read()?;
                ensure!(refused.error_text().contains("not connected"), "{refused}");
            }
            spc.host.run(&["docker", "rm", "-f", "user"])?.ok()?;
            spc.host.run(&["umount", "/mnt/bound"])?.ok()?;
            spc.umount(TARGET)?;
        }
        spc.is_clean()
    });
}

#[test]
fn a_mount_with_repair_off_stays_dead() {
    with_container(|spc| {
        bindfs(spc, OUTSIDE, "x-spc.repair=no")?;
        let (dead, _) = only(spc)?;
        kill(spc)?;
        std::thread::sleep(Duration::from_secs(4));
        let (same, record) = only(spc)?;
        ensure!(same == dead && record["state"] == "stale", "{record}");
        spc.umount(TARGET)?;
        spc.is_clean()?;
        let words = [
            "-t",
            "fuse.bindfs",
            "-o",
            "x-spc.repair=maybe",
            "/srv/source",
            TARGET,
        ];
        spc.refused_mount(
            &words,
            1,
            &["bad option x-spc.repair", "host, containers or no"],
        )?;
        Ok(())
    });
}

/// Checks that a mount shows the same type, source and files after a repair.
fn is_the_same<H: AnyHost>(spc: &Container<H>, arguments: &[&str], shows: &str) -> Result<()> {
    mount(spc, arguments)?;
    spc.host.write("/mnt/data/repaired", b"before")?;
    let (dead, _) = only(spc)?;
    kill(spc)?;
    let took = is_repaired(spc, dead)?;
    eprintln!("{arguments:?}: another mount was in place after {took:.1?}");
    let on = spc.on(TARGET)?;
    ensure!(on.len() == 1 && on[0].fstype == shows, "{on:?}");
    ensure!(spc.host.read("/mnt/data/repaired")? == b"before");
    spc.host.write("/mnt/data/repaired", b"after")?;
    Ok(())
}

#[test]
fn a_glusterfs_volume_comes_back_and_its_daemon_can_still_unmount_it() {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        is_the_same(&spc, &["-t", "glusterfs", &source], "fuse.glusterfs")?;
        for node in cluster.nodes() {
            ensure!(node.host().read(node.brick("vol").join("repaired"))? == b"after");
        }
        // On SIGTERM, GlusterFS unmounts its placeholder path itself.
        let (_, record) = only(&spc)?;
        spc.sh(&format!("kill -TERM {}", record["daemon"][0]))?
            .ok()?;
        until("the mount is gone", || Ok(spc.on(TARGET)?.is_empty()))?;
        until("the record is removed", || Ok(spc.is_clean().is_ok()))
    });
}

/// A mount whose server is gone responds as one whose daemon is gone. Its daemon reconnects, and a
/// repair would take it from the programs that use it.
#[test]
fn a_daemon_that_lost_its_server_is_not_replaced() {
    with_lab(|lab| {
        let (cluster, spc) = (lab.gluster()?, Spc::privileged(lab)?);
        cluster.create_volume("lost")?;
        let source = format!("{}:/lost", cluster.nodes()[0].host().address());
        mount(&spc, &["-t", "glusterfs", &source])?;
        let (before, record) = only(&spc)?;
        for node in cluster.nodes() {
            node.stop()?;
        }
        until("the mount is stale", || {
            Ok(spc.record(TARGET)?["state"] == "stale")
        })?;
        // Exit code 3: nothing to repair.
        spc.exec(&["spc", "repair", TARGET])?.code(3)?;
        for node in cluster.nodes() {
            node.start()?;
        }
        until("the mount responds", || {
            Ok(spc.record(TARGET)?["state"] == "ok")
        })?;
        let (after, now) = only(&spc)?;
        ensure!(
            after == before && now["daemon"] == record["daemon"],
            "{now}"
        );
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}

/// Uses a read-only mount: the metadata server keeps the write capabilities of a dead client for a
/// while.
#[test]
fn ceph_fuse_comes_back_with_the_key_of_a_file() {
    with_container(|spc| {
        let ceph = lab::ceph().context("no cluster")?;
        spc.put("/etc/app.secret", ceph.secret("app")?.as_bytes())?;
        ceph.sh("echo kept >/mnt/app/repaired && sync -f /mnt/app/repaired")?;
        let options = "ro,name=app,secretfile=/etc/app.secret";
        let source = format!("{}:/app", ceph.address());
        mount(spc, &["-t", "ceph-fuse", "-o", options, &source])?;
        ensure!(spc.host.read("/mnt/data/repaired")? == b"kept\n");
        let (dead, _) = only(spc)?;
        // From now on, only the copy beside the redirect has the key.
        spc.sh("rm /etc/app.secret")?.ok()?;
        kill(spc)?;
        is_repaired(spc, dead)?;
        ensure!(spc.host.read("/mnt/data/repaired")? == b"kept\n");
        // ceph-fuse remounts like this to empty the kernel's caches.
        let remount = "
            for dir in /spc/targets/*/; do
                case $dir in *.files/) continue ;; esac
                LIBMOUNT_FSTAB=/dev/null LIBMOUNT_FORCE_MOUNT2=always mount -i -o remount $dir || exit
            done";
        let (_, record) = only(spc)?;
        let daemon = record["daemon"][0].to_string();
        spc.exec(&["nsenter", "-t", &daemon, "-m", "sh", "-c", remount])?
            .ok()?;
        let refused = spc.host.sh("echo x >/mnt/data/repaired")?;
        ensure!(refused.error_text().contains("Read-only"), "{refused}");
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}

/// Mounts a directory of an SSH server.
fn sshfs(spc: &Spc<'_>, server: &Host<'_>) -> Result<()> {
    spc.put("/host/root/key", &server.read("/root/key")?)?;
    spc.sh("chmod 600 /host/root/key")?.ok()?;
    let source = format!("root@{}:/srv/data", server.address());
    let options = "IdentityFile=/host/root/key,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,BatchMode=yes";
    mount(spc, &["-t", "fuse.sshfs", "-o", options, &source])
}

#[test]
fn failed_repairs_back_off_and_say_why() {
    with_lab(|lab| {
        let (spc, server) = (Spc::privileged(lab)?, sshd(lab)?);
        sshfs(&spc, &server)?;
        let (dead, _) = only(&spc)?;
        server.sh("kill $(cat /run/sshd.pid)")?.ok()?;
        kill(&spc)?;
        let tried = || Ok(log(&spc).contains("tries=2"));
        until("two repairs have failed", tried).with_context(|| log(&spc))?;
        let text = log(&spc);
        for what in [
            "Connection refused",
            "repair failed",
            "again_in=1s",
            "again_in=2s",
        ] {
            ensure!(text.contains(what), "no {what}: {text}");
        }
        let (same, record) = only(&spc)?;
        ensure!(same == dead && record["state"] == "stale", "{record}");
        server.sh("/usr/sbin/sshd -o UsePAM=no")?.ok()?;
        is_repaired(&spc, dead)?;
        ensure!(spc.host.read("/mnt/data/file")? == b"on the server");
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}

#[test]
fn an_unmount_does_not_wait_for_a_repair() {
    with_lab(|lab| {
        let (spc, server) = (Spc::privileged(lab)?, sshd(lab)?);
        sshfs(&spc, &server)?;
        // New connections hang before the server's banner.
        server.sh("kill -STOP $(cat /run/sshd.pid)")?.ok()?;
        kill(&spc)?;
        until("a repair is at work", || {
            let at_work = "grep -q making /run/spc/mounts/*.json && pidof ssh";
            Ok(spc.host.sh(at_work)?.success())
        })?;
        let output = spc.umount(TARGET)?;
        ensure!(output.elapsed < Duration::from_secs(10), "{output}");
        spc.is_clean()
    });
}

#[test]
fn a_repair_rereads_its_secret_and_keeps_none() {
    with_lab(|lab| {
        let (spc, store) = (Spc::privileged(lab)?, lab.s3()?);
        spc.put("/run/key", store.key().as_bytes())?;
        let options = format!("use_path_request_style,url={}", store.guarded());
        let mount = |from: &'static str| {
            [
                "-t",
                "fuse.s3fs",
                "-o",
                options.as_str(),
                "--secret",
                from,
                "bucket",
            ]
        };
        is_the_same(&spc, &mount("passwd=file:/run/key"), "fuse.s3fs")?;
        let (_, secret) = store.key().split_once(':').context("no key")?;
        let kept = spc
            .host
            .sh(&format!("grep -rF '{secret}' /run/spc/mounts"))?;
        ensure!(kept.stdout.is_empty(), "{kept}");
        spc.umount(TARGET)?;

        let given = [&["spc", "mount"][..], &mount("passwd=stdin"), &[TARGET]].concat();
        spc.exec_with(&given, store.key().as_bytes())?.ok()?;
        let (dead, _) = only(&spc)?;
        kill(&spc)?;
        let why = "its secret passwd came from stdin, and is not kept";
        until("the reason is in the log", || Ok(log(&spc).contains(why)))?;
        let (same, record) = only(&spc)?;
        ensure!(same == dead && record["state"] == "stale", "{record}");
        ensure!(!log(&spc).contains(secret), "{}", log(&spc));
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}

/// Checks that a mount whose daemon ran in the container is repaired when the container restarts.
#[test]
fn a_mount_that_died_with_its_container_returns_with_it() {
    with_container(|spc| {
        bindfs(spc, INSIDE, "allow_other")?;
        let (dead, _) = only(spc)?;
        spc.host
            .run(&["docker", "restart", "-t", "1", "spc"])?
            .ok()?;
        is_repaired(spc, dead)?;
        ensure!(spc.host.read("/mnt/data/file")? == b"through\n");
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}

/// Checks that the next command, any command, completes or rolls back a killed repair.
#[test]
fn a_killed_repair_can_be_run_again() {
    with_lab(|lab| {
        let scene = Scene::new(lab, false)?;
        let spc = &scene.spc;
        spc.host.run(&["mkdir", "-p", TARGET])?.ok()?;
        spc.sh("mkdir -p /srv/source")?.ok()?;
        let words = ["-t", "fuse.bindfs", "/srv/source"];
        let case = Case::new("bindfs", &words, TARGET, 3, 1);
        let (umount, repair) = (["spc", "umount", TARGET], ["spc", "repair", TARGET]);
        let mut steps = Vec::new();
        for at in 1.. {
            for again in [true, false] {
                scene.run(&case.mount)?.ok()?;
                let (dead, _) = only(spc)?;
                scene.kill_daemons()?;
                until("the daemon has ended", || {
                    Ok(spc.census(scene.first)?.marked.is_empty())
                })?;
                let order = Kill {
                    at,
                    victim: Victim::Command,
                    family: false,
                    only: None,
                };
                let stepped = spc.host.step(scene.first, &repair, order)?;
                let here = || format!("killed at step {at}: {:?}", stepped.steps.last());
                if stepped.killed && again {
                    let output = scene.run(&repair)?;
                    ensure!(
                        output.success() || output.status == Status::Code(3),
                        "{}: {output}",
                        here()
                    );
                }
                if again {
                    scene.is_mounted(&case).with_context(here)?;
                    let (mount, record) = only(spc)?;
                    ensure!(
                        mount != dead && record["state"] == "ok",
                        "{}: {record}",
                        here()
                    );
                }
                scene.run(&umount)?.ok().with_context(here)?;
                scene.is_clean().with_context(here)?;
                if !stepped.killed {
                    stepped.output.ok()?;
                    ensure!(steps.len() > 20, "only {steps:?}");
                    eprintln!("killed at {} steps: {}", steps.len(), steps.join(", "));
                    return Ok(());
                }
                steps = stepped.steps;
            }
        }
        Ok(())
    });
}
