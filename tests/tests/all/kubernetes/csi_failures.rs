//! The CSI drivers when a server, a daemon, a call or the container fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::kubernetes::csi::{
    Client, CsiVolume, MAPPED, SHARE, is_clean, memory, record, refused, serve, start, target,
};
use crate::support::{Spc, until, with_gluster, with_lab};

/// Has bindfs wait before it mounts a directory of the container.
fn slow_bindfs(spc: &Spc<'_>, seconds: u32) -> Result<()> {
    spc.sh("mkdir -p /srv/slow; [ -e /usr/bin/bindfs.real ] || mv /usr/bin/bindfs /usr/bin/bindfs.real")?
        .ok()?;
    let script = format!("#!/bin/sh\nsleep {seconds}\nexec /usr/bin/bindfs.real \"$@\"\n");
    spc.put("/usr/bin/bindfs", script.as_bytes())
}

/// Volume that [`slow_bindfs`] mounts.
fn slow(id: &str) -> CsiVolume {
    CsiVolume::new(id, "fuse.bindfs", &[("source", "/srv/slow")])
}

#[test]
fn a_call_ends_within_its_deadline_and_leaves_nothing() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        slow_bindfs(&spc, 60)?;
        let volume = slow("pv-1");
        let staging = volume.staging(MAPPED);
        spc.host.run(&["mkdir", "-p", &staging])?.ok()?;
        let began = Instant::now();
        let reply = driver.stage_within(Duration::from_secs(8), &volume);
        ensure!(began.elapsed() < Duration::from_secs(8), "{reply:?}");
        refused(reply, Code::Internal, "cannot mount /srv/slow")?;
        spc.is_clean()?;
        ensure!(spc.on(&staging)?.is_empty());
        // Other volumes do not wait for it.
        slow_bindfs(&spc, 0)?;
        driver.stage(&spc, &volume)??;
        driver.unstage(&volume)?;
        is_clean(&spc)
    });
}

/// Worker processes of the drivers.
pub fn workers(spc: &Spc<'_>) -> Vec<Pid> {
    let is_worker = |process: &i32| {
        let words = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.any(|word| word == b"csi-work")
    };
    let processes = spc.host.processes().into_iter().filter(is_worker);
    processes.filter_map(Pid::from_raw).collect()
}

/// Kills all workers, and returns their number.
fn kill_workers(spc: &Spc<'_>) -> usize {
    let workers = workers(spc).into_iter();
    let killed = workers.filter(|worker| kill_process(*worker, Signal::KILL).is_ok());
    killed.count()
}

#[test]
fn workers_killed_at_any_moment_leave_nothing_that_the_next_call_does_not_undo() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        spc.host.sh("mkdir -p /srv/source")?.ok()?;
        let volume = CsiVolume::new("pv-1", "fuse.bindfs", &[("source", "/host/srv/source")]);
        driver.stage(&spc, &volume)??;
        driver.unstage(&volume)?;
        driver.prepare(&spc, "1-1")?;
        let before = spc.host.mountinfo()?.len();
        let mut interrupted = 0;
        for round in 0..16 {
            let (publish, unstage) = (round % 4 == 2, round % 4 == 3);
            if publish || unstage {
                driver.stage(&spc, &volume)??;
            }
            let killed = std::thread::scope(|scope| -> Result<_> {
                let killer = scope.spawn(|| {
                    let deadline = Instant::now() + Duration::from_secs(5);
                    while workers(&spc).is_empty() && Instant::now() < deadline {}
                    std::thread::sleep(Duration::from_millis(2 * round));
                    kill_workers(&spc)
                });
                let reply = match (publish, unstage) {
                    (true, _) => driver.publish_as(driver.publish_request(&volume, "1-1")),
                    (_, true) => driver.unstage(&volume),
                    _ => driver.stage_within(Duration::from_secs(60), &volume),
                };
                killer.join().map_err(|_| anyhow::anyhow!("a panic"))?;
                Ok(reply)
            })?;
            if let Err(status) = killed {
                ensure!(status.code() == Code::Aborted, "{status:?}");
                interrupted += 1;
            }
            // kubelet cannot make the directory either, until `spc serve` has undone a half mount.
            until("the volume is staged again", || {
                Ok(driver.stage(&spc, &volume).is_ok_and(|reply| reply.is_ok()))
            })?;
            driver.publish(&spc, &volume, "1-1")?.context(round)?;
            ensure!(spc.host.mountinfo()?.len() == before + 2, "round {round}");
            driver.unpublish(&volume, "1-1").context(round)?;
            driver.unstage(&volume).context(round)?;
            ensure!(spc.host.mountinfo()?.len() == before, "round {round}");
        }
        ensure!(interrupted > 0, "no call was killed in the middle");
        is_clean(&spc)
    });
}

#[test]
fn parallel_calls_and_another_request_in_between_make_one_mount() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let volume = memory("pv-1");
        let mut other = volume.clone();
        other.mount_options = vec!["noexec".into()];
        let before = spc.host.mountinfo()?.len();
        let staging = volume.staging(SHARE);
        spc.host.run(&["mkdir", "-p", &staging])?.ok()?;
        let replies = std::thread::scope(|scope| -> Result<Vec<_>> {
            let (spc, volume, other) = (&spc, &volume, &other);
            let calls = (0..20).map(|call| {
                scope.spawn(move || -> Result<_> {
                    let driver = Client::register(spc, SHARE)?;
                    let volume = if call % 5 == 4 { other } else { volume };
                    Ok(driver.stage_within(Duration::from_secs(60), volume))
                })
            });
            let calls: Vec<_> = calls.collect();
            let replies = calls
                .into_iter()
                .map(|call| call.join().map_err(|_| anyhow::anyhow!("a panic"))?);
            replies.collect()
        })?;
        let made = replies.iter().filter(|reply| reply.is_ok()).count();
        // Whichever request came first has the target.
        ensure!(made == 16 || made == 4, "{replies:?}");
        for reply in replies.into_iter().filter(|reply| reply.is_err()) {
            refused(reply, Code::AlreadyExists, "")?;
        }
        ensure!(spc.host.mountinfo()?.len() == before + 1);
        driver.unstage(&volume)?;
        is_clean(&spc)
    });
}

#[test]
fn what_is_killed_in_the_middle_is_done_by_the_next_call() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        slow_bindfs(&spc, 3)?;
        let volume = slow("pv-1");
        let staging = volume.staging(MAPPED);
        spc.host.run(&["mkdir", "-p", &staging])?.ok()?;
        // The worker dies while its helper waits.
        let killed = std::thread::scope(|scope| -> Result<()> {
            let killer = scope.spawn(|| -> Result<()> {
                until("the worker has written its record", || {
                    Ok(spc.host.sh("ls /run/spc/mounts/*.json")?.success())
                })?;
                // A child of the worker counts as well, until it runs a program.
                ensure!(kill_workers(&spc) > 0);
                Ok(())
            });
            let reply = driver.stage_within(Duration::from_secs(60), &volume);
            killer.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            refused(reply, Code::Aborted, "not answered")
        });
        killed.context("the call whose worker was killed")?;
        driver.stage(&spc, &volume)??;
        ensure!(spc.on(&staging)?.len() == 1);
        driver.unstage(&volume)?;

        // The daemon of this one runs on the host.
        spc.host.sh("mkdir -p /srv/source")?.ok()?;
        let volume = CsiVolume::new("pv-2", "fuse.bindfs", &[("source", "/host/srv/source")]);
        driver.stage(&spc, &volume)??;
        driver.publish(&spc, &volume, "1-1")??;
        let before = spc.host.mountinfo()?.len();

        // The container dies, and another one takes over.
        for _ in 0..2 {
            spc.host
                .run(&["docker", "kill", "-s", "KILL", "spc"])?
                .ok()?;
            spc.remove()?;
            start(&spc)?;
            let driver = Client::register(&spc, MAPPED)?;
            driver.stage(&spc, &volume)??;
            driver.publish(&spc, &volume, "1-1")??;
            ensure!(spc.host.mountinfo()?.len() == before);
        }
        let driver = Client::register(&spc, MAPPED)?;
        driver.unpublish(&volume, "1-1")?;
        driver.unstage(&volume)?;
        is_clean(&spc)?;
        // At the end the sockets go.
        spc.host.run(&["docker", "stop", "spc"])?.ok()?;
        let sockets = "find /var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry -type s";
        ensure!(spc.host.sh(sockets)?.text().is_empty());
        Ok(())
    });
}

#[test]
fn calls_for_one_volume_wait_for_each_other() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        slow_bindfs(&spc, 2)?;
        let volume = slow("pv-1");
        let staging = volume.staging(MAPPED);
        spc.host.run(&["mkdir", "-p", &staging])?.ok()?;
        std::thread::scope(|scope| -> Result<()> {
            let calls = (0..4).map(|_| {
                scope.spawn(|| -> Result<()> {
                    let driver = Client::register(&spc, MAPPED)?;
                    Ok(driver.stage_within(Duration::from_secs(60), &volume)?)
                })
            });
            for call in calls.collect::<Vec<_>>() {
                call.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            }
            Ok(())
        })?;
        ensure!(spc.on(&staging)?.len() == 1);
        driver.unstage(&volume)?;
        is_clean(&spc)
    });
}

/// Sends a signal to the daemons of a mount.
fn signal(spc: &Spc<'_>, target: &str, signal: &str) -> Result<()> {
    let daemons = record(spc, target)?["daemon"].clone();
    let daemons: Vec<String> = daemons
        .as_array()
        .context("no daemon")?
        .iter()
        .map(ToString::to_string)
        .collect();
    ensure!(!daemons.is_empty(), "no daemon");
    spc.sh(&format!("kill -{signal} {}", daemons.join(" ")))?
        .ok()?;
    Ok(())
}

#[test]
fn statistics_of_a_volume_never_wait_for_its_server() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, MAPPED)?;
        spc.host.sh("mkdir -p /srv/source")?.ok()?;
        let volume = CsiVolume::new("pv-1", "fuse.bindfs", &[("source", "/host/srv/source")]);
        driver.stage(&spc, &volume)??;
        driver.publish(&spc, &volume, "1-1")??;
        let (staging, published) = (volume.staging(MAPPED), target("1-1"));
        for path in [&staging, &published] {
            let stats = driver.stats(&volume, path)?;
            ensure!(stats.usage.len() == 2, "{stats:?}");
            let bytes = &stats.usage[0];
            ensure!(
                bytes.total > 0 && bytes.available > 0 && bytes.used >= 0,
                "{stats:?}"
            );
            ensure!(
                stats
                    .volume_condition
                    .is_some_and(|condition| !condition.abnormal)
            );
        }
        let last = driver.stats(&volume, &published)?.usage;
        let other = CsiVolume::new("pv-2", "", &[]);
        for (volume, path) in [
            (&other, published.as_str()),
            (&volume, "/var/lib/kubelet"),
            (&volume, "/nowhere"),
        ] {
            let reply = driver.stats(volume, path).map(drop);
            refused(reply, Code::NotFound, "no such volume")?;
        }
        refused(
            driver.stats(&volume, "").map(drop),
            Code::InvalidArgument,
            "volume_path",
        )?;

        signal(&spc, &staging, "STOP")?;
        for _ in 0..3 {
            let began = Instant::now();
            let stats = driver.stats(&volume, &published)?;
            ensure!(
                began.elapsed() < Duration::from_secs(2),
                "{:?}",
                began.elapsed()
            );
            ensure!(stats.usage == last, "{stats:?}");
            ensure!(
                stats
                    .volume_condition
                    .is_some_and(|condition| condition.abnormal)
            );
        }
        // A pod whose server is gone can be deleted.
        let began = Instant::now();
        driver.unpublish(&volume, "1-1")?;
        driver.unstage(&volume)?;
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}",
            began.elapsed()
        );
        ensure!(spc.on(&published)?.is_empty() && spc.on(&staging)?.is_empty());
        is_clean(&spc)
    });
}

#[test]
fn a_dead_daemon_is_replaced_for_all_pods() {
    with_gluster(|lab, cluster| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let address = cluster.nodes()[0].host().address().to_string();
        let attributes = [("servers", address.as_str()), ("path", "vol")];
        let volume = CsiVolume::new("pv-1", "glusterfs", &attributes);
        driver.stage(&spc, &volume)??;
        driver.publish(&spc, &volume, "1-1")??;
        let mut read_only = volume.clone();
        read_only.read_only = true;
        driver.publish(&spc, &read_only, "1-2")??;
        spc.host.write(format!("{}/alive", target("1-1")), b"yes")?;
        let before = spc.host.mountinfo()?.len();
        signal(&spc, &volume.staging(SHARE), "KILL")?;
        for pod in ["1-1", "1-2"] {
            let file = format!("{}/alive", target(pod));
            until("the volume is back", || {
                Ok(spc.host.read(&file).is_ok_and(|bytes| bytes == b"yes"))
            })?;
            until("the record has the new mount", || {
                let on = spc.on(target(pod))?;
                let record = record(&spc, &target(pod))?;
                Ok(on.len() == 1 && record["mount_id"] == on[0].id)
            })?;
        }
        ensure!(spc.host.mountinfo()?.len() == before);
        let refused_write = spc.host.sh(&format!("echo x >{}/file", target("1-2")))?;
        ensure!(
            refused_write.error_text().contains("Read-only"),
            "{refused_write}"
        );
        driver.publish(&spc, &volume, "1-1")??;
        ensure!(driver.stats(&volume, &target("1-2"))?.usage.len() == 2);
        for pod in ["1-1", "1-2"] {
            driver.unpublish(&volume, pod)?;
        }
        driver.unstage(&volume)?;
        is_clean(&spc)
    });
}
