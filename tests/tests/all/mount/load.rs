//! A thousand commands at once: each mount is made, memory stays bounded, and the limit of running
//! helpers holds.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Output, Process};

use crate::support::{Spc, entries, until, with_container};

/// Limit for all commands, generous for a machine with other work.
const LIMIT: Duration = Duration::from_secs(600);

/// Starts many commands in the container. All wait at a gate and begin together, and the output
/// counts their exit codes by value. `{}` becomes the number of each command.
fn at_once(spc: &Spc<'_>, count: usize, command: &str) -> Result<Process> {
    let script = r#"
        rm -rf /run/storm && mkdir /run/storm && mkfifo /run/storm/gate && exec 9<>/run/storm/gate
        for number in $(seq "$1"); do
            (command=$(echo "$2" | sed "s/{}/$number/g"); read -r go <&9; eval "$command" >/run/storm/$number.out 2>&1; echo $? >/run/storm/$number) &
        done
        sleep 1
        yes '' | head -n "$1" >&9
        wait
        cat /run/storm/[0-9]*.out
        for code in $(cat /run/storm/*[0-9] | sort -u); do echo "$code: $(grep -lx "$code" /run/storm/*[0-9] | wc -l)"; done"#;
    let count = count.to_string();
    let words = [
        "docker", "exec", "spc", "sh", "-c", script, "sh", &count, command,
    ];
    spc.host.command(&words)?.limit(LIMIT).spawn()
}

/// Memory (PSS) of the processes whose command line begins with `name`, and their number.
fn memory(spc: &Spc<'_>, name: &str) -> (u64, usize) {
    let (mut kilobytes, mut count) = (0, 0);
    for process in spc.host.processes() {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        if !line.starts_with(name.as_bytes()) {
            continue;
        }
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        let pss = rollup.unwrap_or_default();
        let pss = pss.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|pss| pss.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kilobytes += pss.unwrap_or_default();
        count += 1;
    }
    (kilobytes, count)
}

/// Waits for all commands, and checks that each exited with 0.
fn all_well(storm: Process, count: usize) -> Result<Output> {
    let output = storm.wait()?.ok()?;
    ensure!(output.text() == format!("0: {count}"), "{output}");
    Ok(output)
}

#[test]
fn a_thousand_mounts_at_once() {
    const COUNT: usize = 1000;
    with_container(|spc| {
        let before = entries(&spc.host)?;
        let script = format!("mkdir /mnt/all && cd /mnt/all && mkdir $(seq {COUNT})");
        spc.host.sh(&script)?.ok()?;
        let mount = "spc mount -t tmpfs -o size=4k x /mnt/all/{}";
        let begun = Instant::now();
        let mut storm = at_once(spc, COUNT, mount)?;
        let mut most = (0, 0);
        // Every command logs how it went when all have ended.
        while storm.so_far()?.0.is_empty() && begun.elapsed() < LIMIT {
            most = most.max(memory(spc, "spc\0mount\0"));
            std::thread::sleep(Duration::from_millis(500));
        }
        let output = all_well(storm, COUNT)?;
        until("all mount tables have a thousand more entries", || {
            Ok(entries(&spc.host)? == before + COUNT)
        })?;
        let (kilobytes, commands) = most;
        eprintln!(
            "{COUNT} mounts at once: {:.1?}; at most seen: {commands} commands, {kilobytes} kB in all",
            output.elapsed
        );
        ensure!(
            kilobytes < 2_000_000,
            "{kilobytes} kB in {commands} commands"
        );
        let first = spc.first()?;
        let census = spc.census(first)?;
        ensure!(
            census.records.len() == COUNT
                && census.strays.is_empty()
                && census.redirects.is_empty(),
            "{census:?}"
        );
        let storm = at_once(spc, COUNT, "spc umount /mnt/all/{}")?;
        let output = all_well(storm, COUNT)?;
        eprintln!("their unmounts at once: {:.1?}", output.elapsed);
        until("nothing is left", || {
            Ok(entries(&spc.host)? == before && spc.census(first)?.is_empty())
        })
    });
}

#[test]
#[ignore = "long: a thousand programs and daemons"]
fn a_thousand_daemons_at_once() {
    const COUNT: usize = 1000;
    with_container(|spc| {
        spc.host.sh(&format!("mkdir -p /srv/data /mnt/all && echo hello >/srv/data/file && cd /mnt/all && mkdir $(seq {COUNT})"))?.ok()?;
        let storm = at_once(
            spc,
            COUNT,
            "spc mount -t fuse.bindfs /host/srv/data /mnt/all/{}",
        )?;
        let output = all_well(storm, COUNT)?;
        eprintln!("{COUNT} daemons at once: {:.1?}", output.elapsed);
        let count = spc
            .host
            .sh("grep -c ' /mnt/all/' /proc/self/mountinfo")?
            .ok()?
            .text();
        ensure!(count == COUNT.to_string(), "{count} mounts on the host");
        spc.host
            .sh(&format!(
                "for n in $(seq {COUNT}); do cmp /srv/data/file /mnt/all/$n/file || exit 1; done"
            ))?
            .ok()?;
        spc.umount("--all")?;
        spc.is_clean()
    });
}

/// A slow helper that logs when it begins and when it ends.
const SLOW: &str = r#"#!/bin/sh
echo "+ $1" >>/run/slow
sleep 0.3
mount -i -t ramfs "$1" "$2"
echo "- $1" >>/run/slow
"#;

/// A helper that never ends.
const DEAD: &[u8] = b"#!/bin/sh\nexec sleep 1000\n";

#[test]
fn running_helpers_stay_within_the_limit() {
    const COUNT: usize = 60;
    with_container(|spc| {
        let before = entries(&spc.host)?;
        spc.put("/usr/local/sbin/mount.ramfs", SLOW.as_bytes())?;
        spc.host
            .sh(&format!("mkdir /mnt/all /etc/spc && cd /mnt/all && mkdir $(seq {COUNT}) && echo 6 >/etc/spc/helpers"))?
            .ok()?;
        // Mounts of one server get half of the helper slots.
        let mount = "spc mount -t ramfs $(({} % 2)):/{} /mnt/all/{}";
        let storm = at_once(spc, COUNT, mount)?;
        let output = all_well(storm, COUNT)?;
        let (mut at_work, mut most, mut most_of_one) = (BTreeSet::new(), 0, 0);
        let log = spc.sh("cat /run/slow")?.ok()?.text();
        for line in log.lines() {
            let (event, source) = line
                .split_once(' ')
                .context("not a line of the slow helper")?;
            match event {
                "+" => at_work.insert(source.to_owned()),
                _ => at_work.remove(source),
            };
            most = most.max(at_work.len());
            let of_one = |server: &str| at_work.iter().filter(|s| s.starts_with(server)).count();
            most_of_one = most_of_one.max(of_one("0:").max(of_one("1:")));
        }
        eprintln!(
            "{COUNT} slow mounts at once: {:.1?}, {most} at work at once, {most_of_one} of one server",
            output.elapsed
        );
        ensure!((most, most_of_one) == (6, 3), "{most} {most_of_one}: {log}");
        spc.umount("--all")?;
        spc.is_clean()?;
        ensure!(entries(&spc.host)? == before);
        Ok(())
    });
}

#[test]
fn a_server_that_does_not_respond_delays_no_other_server() {
    with_container(|spc| {
        let before = entries(&spc.host)?;
        spc.put("/usr/local/sbin/mount.ramfs", SLOW.as_bytes())?;
        spc.put("/usr/local/sbin/mount.dead", DEAD)?;
        spc.host
            .sh("mkdir /mnt/dead /etc/spc && cd /mnt/dead && mkdir $(seq 5) && echo 6 >/etc/spc/helpers")?
            .ok()?;
        let dead = "spc mount -t dead --timeout 12 dead:/{} /mnt/dead/{}";
        let storm = at_once(spc, 3, dead)?;
        until("three helpers are running", || {
            Ok(spc
                .sh("pgrep -c -f '^/bin/sh.*mount.dead|^sleep 1000'")?
                .text()
                == "3")
        })?;
        let other = ["-t", "ramfs", "2:/2", "/mnt/dead/5"];
        spc.mount(&other)?;
        // The error of a command in the queue contains the time that it waited.
        let waits = [
            "spc",
            "mount",
            "-t",
            "dead",
            "--timeout",
            "2",
            "dead:/4",
            "/mnt/dead/4",
        ];
        let expected =
            ["timed out in the queue after 2 s: 3 helpers for dead are running (the limit)"];
        spc.exec(&waits)?.code(32).and_then(|output| {
            ensure!(output.error_text().contains(expected[0]), "{output}");
            Ok(())
        })?;
        let output = storm.wait()?.ok()?;
        ensure!(
            output.text().matches("killed by spc after 12 s").count() == 3,
            "{output}"
        );
        spc.umount("/mnt/dead/5")?;
        spc.is_clean()?;
        ensure!(entries(&spc.host)? == before);
        Ok(())
    });
}

#[test]
fn a_killed_command_frees_its_helper_slot() {
    with_container(|spc| {
        let before = entries(&spc.host)?;
        spc.put("/usr/local/sbin/mount.ramfs", SLOW.as_bytes())?;
        spc.put("/usr/local/sbin/mount.dead", DEAD)?;
        spc.host
            .sh("mkdir /mnt/dead /etc/spc && cd /mnt/dead && mkdir $(seq 4) && echo 1 >/etc/spc/helpers")?
            .ok()?;
        let held = spc.host.spawn(&[
            "docker",
            "exec",
            "spc",
            "spc",
            "mount",
            "-t",
            "dead",
            "a:/",
            "/mnt/dead/1",
        ])?;
        until("the helper is running", || {
            Ok(spc.sh("pgrep -f mount.dead")?.success())
        })?;
        // A command without the limit does not wait.
        let insists = ["-t", "ramfs", "-o", "x-spc.helpers=0", "b:/", "/mnt/dead/2"];
        spc.mount(&insists)?;
        spc.sh("pkill -9 -f '^spc mount -t dead'")?.ok()?;
        drop(held);
        spc.mount(&["-t", "ramfs", "c:/", "/mnt/dead/3"])?;
        spc.refused_mount(
            &[
                "-t",
                "ramfs",
                "-o",
                "x-spc.helpers=many",
                "d:/",
                "/mnt/dead/4",
            ],
            1,
            &["bad option x-spc.helpers: not a number: many"],
        )?;
        spc.umount("--all")?;
        spc.is_clean()?;
        ensure!(entries(&spc.host)? == before);
        Ok(())
    });
}
