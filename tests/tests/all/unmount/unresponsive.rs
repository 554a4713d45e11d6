//! Mounts that do not respond, where the wait is uninterruptible. Every command returns within its
//! limit and reports the truth. Other mounts are still watched. However many commands probe the
//! mount, one process waits.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Host, Output};

use crate::kubernetes::flexvolume::sshd;
use crate::support::{Container, Spc, VmSpc, entries, until, with_lab};

/// PIDs of spc's processes with a thread in uninterruptible sleep.
fn waiting(host: &Host<'_>) -> Vec<i32> {
    let waits = |process: &i32| {
        let threads = fs::read_dir(format!("/proc/{process}/task"));
        let mut threads = threads.into_iter().flatten().flatten();
        threads.any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // Names under which spc starts its subprocesses.
            let rest = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            let ours = ["(exe)", "(spc)", "(host)"]
                .iter()
                .any(|name| stat.contains(name));
            ours && rest.is_some_and(|rest| rest.starts_with('D'))
        })
    };
    host.processes().into_iter().filter(waits).collect()
}

/// Checks that a command exits with this code, within this many seconds, and prints these words.
fn says<H: AnyHost>(
    spc: &Container<H>,
    words: &[&str],
    (code, limit): (i32, u64),
    what: &[&str],
) -> Result<Output> {
    let output = spc.exec(words)?.code(code)?;
    let text = format!("{}\n{}", output.text(), output.error_text());
    for what in what {
        ensure!(text.contains(what), "it does not say {what:?}: {output}");
    }
    ensure!(output.elapsed < Duration::from_secs(limit), "{output}");
    eprintln!("{} ({:.1?})\n{text}\n", words.join(" "), output.elapsed);
    Ok(output)
}

/// Target and state of each mount, from `spc ls`.
fn states<H: AnyHost>(spc: &Container<H>) -> Result<Vec<(String, String)>> {
    let list = says(spc, &["spc", "ls"], (0, 10), &[])?.text();
    let rows = list.lines().skip(1).map(|row| {
        let mut words = row.split_whitespace();
        let target = words.next().unwrap_or_default().to_owned();
        (target, words.nth(2).unwrap_or_default().to_owned())
    });
    Ok(rows.collect())
}

const BINDFS: [&str; 6] = ["spc", "mount", "-t", "fuse.bindfs", "-o", "x-mount.mkdir"];

/// A thousand probes, a hundred at a time.
const LOOKS: &str =
    "for round in $(seq 10); do for look in $(seq 100); do spc ls >/dev/null & done; wait; done";

#[test]
fn where_no_signal_ends_the_wait() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        let (host, server) = (&spc.host, sshd(lab, "horse")?);
        let before = entries(host)?;
        spc.sh("mkdir -p /host/srv/source && echo through >/host/srv/source/file")?
            .ok()?;
        let source = format!("root@{}:/srv/data", server.address());
        let options = "x-mount.mkdir,x-spc.repair=no,dir_cache=no,StrictHostKeyChecking=no";
        let sshfs = [
            "spc",
            "mount",
            "-t",
            "fuse.sshfs",
            "-o",
            options,
            "--secret",
            "password=stdin",
            &source,
            "/mnt/hung",
        ];
        spc.exec_with(&sshfs, b"horse")?.ok()?;
        let tmpfs = ["-t", "tmpfs", "-o", "x-mount.mkdir", "x"];
        spc.mount(&[&tmpfs[..], &["/mnt/other"]].concat())?;
        spc.mount(&[&tmpfs[..], &["/mnt/hung/below"]].concat())?;
        let bindfs = [&BINDFS[..], &["/host/srv/source", "/mnt/again"]].concat();
        spc.exec(&bindfs)?.ok()?;
        // The daemon has taken the request, so the waiting processes cannot be killed.
        server
            .sh("busybox killall -STOP sshd; pkill -STOP sshd; true")?
            .ok()?;
        std::thread::sleep(Duration::from_millis(1500));

        let hung = |state: &(String, String)| state.1 == "hung";
        let seen = states(&spc)?;
        ensure!(
            seen.iter().filter(|state| hung(state)).count() == 2 && seen.len() == 4,
            "{seen:?}"
        );
        let command = ["docker", "exec", "spc", "sh", "-c", LOOKS];
        let looks = host.command(&command)?.limit(Duration::from_secs(240));
        let looks = looks.run()?.ok()?;
        let left = waiting(host);
        eprintln!("a thousand looks: {:.1?}, {left:?} wait", looks.elapsed);
        ensure!(left.len() == 1, "{left:?} wait");

        // A probe that finds a waiting process returns sooner than the first one.
        for _ in 0..2 {
            let way = [
                "the way to /mnt/hung/new does not answer: nothing from /mnt/hung (fuse.sshfs) in 5 s",
                "hint: ",
            ];
            says(
                &spc,
                &[&tmpfs[..], &["/mnt/hung/new"]].concat(),
                (32, 12),
                &way,
            )?;
            let explain = [&["spc", "explain"], &tmpfs[2..], &["/mnt/hung/new"]].concat();
            says(&spc, &explain, (32, 12), &way)?;
            let bind = ["spc", "mount", "-B", "/mnt/hung/new", "/mnt/other"];
            says(&spc, &bind, (32, 12), &way)?;
            says(&spc, &["spc", "umount", "/mnt/hung/new"], (32, 12), &way)?;
            let dead = ["/mnt/hung is mounted, but dead: it does not answer"];
            spc.exec_with(&sshfs, b"horse")?.code(32).and_then(|told| {
                ensure!(told.error_text().contains(dead[0]), "{told}");
                ensure!(told.elapsed < Duration::from_secs(12), "{told}");
                Ok(())
            })?;
            let below = [
                "does not answer",
                "hint: it is on /mnt/hung, which does not answer",
            ];
            says(
                &spc,
                &["spc", "umount", "/mnt/hung/below"],
                (32, 40),
                &below,
            )?;
            says(&spc, &["spc", "doctor"], (0, 20), &[])?;
        }
        let left = waiting(host);
        ensure!(left.len() == 1, "{left:?} wait");

        // A helper that waits on the dead mount.
        let stuck = "#!/bin/sh\nnsenter --mount=/proc/1/ns/mnt stat /mnt/hung/file\n";
        spc.put("/usr/local/sbin/mount.stuck", stuck.as_bytes())?;
        let mount = [
            "spc",
            "mount",
            "-t",
            "stuck",
            "--timeout",
            "3",
            "-o",
            "x-mount.mkdir",
            "x",
            "/mnt/stuck",
        ];
        says(
            &spc,
            &mount,
            (32, 25),
            &["ended by spc after 3 s", "do not end"],
        )?;
        ensure!(states(&spc)?.contains(&("/mnt/stuck".into(), "busy".into())));
        says(
            &spc,
            &["spc", "umount", "/mnt/stuck"],
            (2, 25),
            &["do not end", "hint: they wait in the kernel"],
        )?;

        // spc still watches the other mounts.
        let record = spc.record("/mnt/again")?;
        spc.sh(&format!("kill -9 {}", record["daemon"][0]))?.ok()?;
        until("the one that can be is repaired", || {
            let now = spc.record("/mnt/again")?;
            Ok(now["state"] == "ok" && now["daemon"] != record["daemon"])
        })?;
        host.run(&["umount", "/mnt/other"])?.ok()?;
        until("an unmount on the host is noticed", || {
            let seen = states(&spc)?;
            Ok(seen.iter().all(|(target, _)| target != "/mnt/other"))
        })?;
        spc.mount(&[&tmpfs[..], &["/mnt/other"]].concat())?;
        says(&spc, &["spc", "umount", "/mnt/other"], (0, 10), &[])?;

        // After the unmount, no process waits.
        let umount = ["spc", "umount", "-R", "-f", "-l", "/mnt/hung"];
        says(&spc, &umount, (0, 60), &[])?;
        until("nobody waits", || Ok(waiting(host).is_empty()))?;
        says(&spc, &["spc", "umount", "/mnt/again"], (0, 30), &[])?;
        // The helper's remains go without another command.
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
            .with_context(|| format!("{:?}", spc.is_clean()))?;
        until("no entry is left", || Ok(entries(host)? == before))
    });
}

#[test]
fn an_nfs_server_that_is_gone() {
    with_lab(|lab| {
        let server = lab::knfsd().context("no lab")?.vm().address();
        let spc = VmSpc::privileged(lab)?;
        let host = &spc.host;
        let source = format!("{server}:/data");
        let nfs = [
            "-t",
            "nfs",
            "-o",
            "x-mount.mkdir,acregmax=1,acdirmax=1",
            &source,
            "/mnt/nfs",
        ];
        let tmpfs = ["-t", "tmpfs", "-o", "x-mount.mkdir", "x"];
        spc.mount(&nfs)?;
        spc.mount(&[&tmpfs[..], &["/mnt/other"]].concat())?;
        host.sh("ip link set eth0 down")?.ok()?;
        let looks = "for look in $(seq 20); do spc ls >/dev/null & done; wait";
        let hung = |state: &(String, String)| state.1 == "hung";
        ensure!(states(&spc)?.iter().filter(|state| hung(state)).count() == 1);
        spc.sh(looks)?.ok()?;
        let count = "cat /proc/[0-9]*/task/*/stat | grep -cE '\\((exe|spc|host)\\) D'; true";
        let left = host.sh(count)?.text();
        ensure!(["0", "1"].contains(&left.as_str()), "{left} wait");
        for _ in 0..2 {
            let way = [
                "the way to /mnt/nfs/new does not answer",
                "/mnt/nfs (nfs4)",
                "hint: ",
            ];
            says(
                &spc,
                &[&tmpfs[..], &["/mnt/nfs/new"]].concat(),
                (32, 15),
                &way,
            )?;
            says(&spc, &["spc", "umount", "/mnt/nfs/new"], (32, 15), &way)?;
        }
        // spc still watches the other mounts.
        host.sh("umount /mnt/other")?.ok()?;
        until("an unmount on the host is noticed", || {
            Ok(states(&spc)?
                .iter()
                .all(|(target, _)| target != "/mnt/other"))
        })?;
        let umount = ["spc", "umount", "-f", "-l", "/mnt/nfs"];
        says(&spc, &umount, (0, 60), &[])?;
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
