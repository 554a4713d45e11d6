//! Mounts that do not respond, where the wait is uninterruptible. Every command returns within its
//! limit and reports the truth. spc still watches the other mounts. Only one process waits,
//! whatever the number of commands that probe the mount.

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

/// Checks that a command exits with this code, within this many seconds, and prints these texts.
fn check<H: AnyHost>(
    spc: &Container<H>,
    words: &[&str],
    (code, limit): (i32, u64),
    texts: &[&str],
) -> Result<Output> {
    let output = spc.exec(words)?.code(code)?;
    let text = format!("{}\n{}", output.text(), output.error_text());
    for expected in texts {
        ensure!(
            text.contains(expected),
            "no {expected:?} in the output: {output}"
        );
    }
    ensure!(output.elapsed < Duration::from_secs(limit), "{output}");
    eprintln!("{} ({:.1?})\n{text}\n", words.join(" "), output.elapsed);
    Ok(output)
}

/// Target and state of each mount, from `spc ls`.
fn states<H: AnyHost>(spc: &Container<H>) -> Result<Vec<(String, String)>> {
    let list = check(spc, &["spc", "ls"], (0, 10), &[])?.text();
    let rows = list.lines().skip(1).map(|row| {
        let mut words = row.split_whitespace();
        let target = words.next().unwrap_or_default().to_owned();
        (target, words.nth(2).unwrap_or_default().to_owned())
    });
    Ok(rows.collect())
}

/// Options of a tmpfs whose target is created.
const TMPFS: [&str; 5] = ["-t", "tmpfs", "-o", "x-mount.mkdir", "x"];

/// Runs a thousand probes, a hundred at a time.
const PROBES: &str =
    "for round in $(seq 10); do for probe in $(seq 100); do spc ls >/dev/null & done; wait; done";

#[test]
fn commands_return_while_a_fuse_mount_does_not_respond() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        let server = sshd(lab, "horse")?;
        let before = entries(&spc.host)?;
        let sshfs = hang(&spc, &server)?;
        one_process_waits(&spc).context("a thousand probes")?;
        // A probe that finds a waiting process returns sooner than the first one.
        for _ in 0..2 {
            paths_below_are_refused(&spc).context("paths below the hung mount")?;
            the_mount_is_called_dead(&spc, &sshfs).context("the hung mount itself")?;
        }
        let left = waiting(&spc.host);
        ensure!(left.len() == 1, "waiting processes: {left:?}");
        a_helper_waits(&spc).context("a helper on the hung mount")?;
        other_mounts_are_watched(&spc).context("mounts beside the hung one")?;
        the_unmount_ends_the_wait(&spc, before).context("unmount of the hung mount")
    });
}

/// Mounts by sshfs on /mnt/hung, other types below and beside it, and stops the server. Returns the
/// command of the hung mount.
fn hang(spc: &Spc<'_>, server: &Host<'_>) -> Result<Vec<String>> {
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
    spc.mount(&[&TMPFS[..], &["/mnt/other"]].concat())?;
    spc.mount(&[&TMPFS[..], &["/mnt/hung/below"]].concat())?;
    let bindfs = ["-t", "fuse.bindfs", "-o", "x-mount.mkdir"];
    spc.mount(&[&bindfs[..], &["/host/srv/source", "/mnt/again"]].concat())?;
    // The daemon has taken the request, so the waiting processes cannot be killed.
    server
        .sh("busybox killall -STOP sshd; pkill -STOP sshd; true")?
        .ok()?;
    std::thread::sleep(Duration::from_millis(1500));
    Ok(sshfs.map(str::to_owned).to_vec())
}

/// Checks that one process waits, however many commands probe the mount.
fn one_process_waits(spc: &Spc<'_>) -> Result<()> {
    let seen = states(spc)?;
    ensure!(
        seen.iter().filter(|(_, state)| state == "hung").count() == 2 && seen.len() == 4,
        "{seen:?}"
    );
    let command = ["docker", "exec", "spc", "sh", "-c", PROBES];
    let probes = spc.host.command(&command)?;
    let probes = probes.limit(Duration::from_secs(240)).run()?.ok()?;
    let left = waiting(&spc.host);
    eprintln!("a thousand probes: {:.1?}, {left:?} wait", probes.elapsed);
    ensure!(left.len() == 1, "waiting processes: {left:?}");
    Ok(())
}

/// Checks that commands on paths below the hung mount fail soon, and name the mount.
fn paths_below_are_refused(spc: &Spc<'_>) -> Result<()> {
    let error = [
        "/mnt/hung/new cannot be reached: /mnt/hung (fuse.sshfs) does not respond within 5 s",
        "hint: ",
    ];
    let request = [&TMPFS[..], &["/mnt/hung/new"]].concat();
    for command in ["mount", "explain"] {
        let words = [&["spc", command], &request[..]].concat();
        check(spc, &words, (32, 12), &error)?;
    }
    let bind = ["spc", "mount", "-B", "/mnt/hung/new", "/mnt/other"];
    check(spc, &bind, (32, 12), &error)?;
    check(spc, &["spc", "umount", "/mnt/hung/new"], (32, 12), &error)?;
    let below = [
        "does not answer",
        "hint: it is on /mnt/hung, which does not answer",
    ];
    check(spc, &["spc", "umount", "/mnt/hung/below"], (32, 40), &below)?;
    check(spc, &["spc", "doctor"], (0, 20), &[])?;
    Ok(())
}

/// Checks that the same request again fails soon, with an error that calls the mount dead.
fn the_mount_is_called_dead(spc: &Spc<'_>, sshfs: &[String]) -> Result<()> {
    let words: Vec<&str> = sshfs.iter().map(String::as_str).collect();
    let output = spc.exec_with(&words, b"horse")?.code(32)?;
    let dead = "/mnt/hung is mounted, but dead: it does not respond";
    ensure!(output.error_text().contains(dead), "{output}");
    ensure!(output.elapsed < Duration::from_secs(12), "{output}");
    Ok(())
}

/// Checks that spc ends a mount whose helper waits on the hung mount, and keeps its record.
fn a_helper_waits(spc: &Spc<'_>) -> Result<()> {
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
    let late = ["killed by spc after 3 s", "do not end"];
    check(spc, &mount, (32, 25), &late)?;
    ensure!(states(spc)?.contains(&("/mnt/stuck".into(), "busy".into())));
    let left = ["do not end", "hint: they wait in the kernel"];
    check(spc, &["spc", "umount", "/mnt/stuck"], (2, 25), &left)?;
    Ok(())
}

/// Checks that another mount is repaired, and that an unmount on the host is noticed.
fn other_mounts_are_watched(spc: &Spc<'_>) -> Result<()> {
    let record = spc.record("/mnt/again")?;
    spc.sh(&format!("kill -9 {}", record["daemon"][0]))?.ok()?;
    until("the bindfs mount is repaired", || {
        let now = spc.record("/mnt/again")?;
        Ok(now["state"] == "ok" && now["daemon"] != record["daemon"])
    })?;
    spc.host.run(&["umount", "/mnt/other"])?.ok()?;
    until("an unmount on the host is noticed", || {
        let seen = states(spc)?;
        Ok(seen.iter().all(|(target, _)| target != "/mnt/other"))
    })?;
    spc.mount(&[&TMPFS[..], &["/mnt/other"]].concat())?;
    check(spc, &["spc", "umount", "/mnt/other"], (0, 10), &[])?;
    Ok(())
}

/// Checks that after the unmount no process waits, and that nothing is left.
fn the_unmount_ends_the_wait(spc: &Spc<'_>, before: usize) -> Result<()> {
    let umount = ["spc", "umount", "-R", "-f", "-l", "/mnt/hung"];
    check(spc, &umount, (0, 60), &[])?;
    until("no process waits", || Ok(waiting(&spc.host).is_empty()))?;
    check(spc, &["spc", "umount", "/mnt/again"], (0, 30), &[])?;
    // `spc serve` removes the helper's leftovers without another command.
    until("nothing is left", || Ok(spc.is_clean().is_ok()))
        .with_context(|| format!("{:?}", spc.is_clean()))?;
    until("no entry is left", || Ok(entries(&spc.host)? == before))
}

#[test]
fn commands_return_while_an_nfs_server_is_gone() {
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
        spc.mount(&nfs)?;
        spc.mount(&[&TMPFS[..], &["/mnt/other"]].concat())?;
        host.sh("ip link set eth0 down")?.ok()?;
        let probes = "for probe in $(seq 20); do spc ls >/dev/null & done; wait";
        let hung = |state: &(String, String)| state.1 == "hung";
        ensure!(states(&spc)?.iter().filter(|state| hung(state)).count() == 1);
        spc.sh(probes)?.ok()?;
        let count = "cat /proc/[0-9]*/task/*/stat | grep -cE '\\((exe|spc|host)\\) D'; true";
        let left = host.sh(count)?.text();
        ensure!(
            ["0", "1"].contains(&left.as_str()),
            "waiting processes: {left}"
        );
        for _ in 0..2 {
            let error = [
                "/mnt/nfs/new cannot be reached",
                "/mnt/nfs (nfs4)",
                "hint: ",
            ];
            let mount = [&["spc", "mount"], &TMPFS[..], &["/mnt/nfs/new"]].concat();
            check(&spc, &mount, (32, 15), &error)?;
            check(&spc, &["spc", "umount", "/mnt/nfs/new"], (32, 15), &error)?;
        }
        // spc still watches the other mounts.
        host.sh("umount /mnt/other")?.ok()?;
        until("an unmount on the host is noticed", || {
            Ok(states(&spc)?
                .iter()
                .all(|(target, _)| target != "/mnt/other"))
        })?;
        let umount = ["spc", "umount", "-f", "-l", "/mnt/nfs"];
        check(&spc, &umount, (0, 60), &[])?;
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
