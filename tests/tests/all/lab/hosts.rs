//! The lab's disposable hosts.

use anyhow::{Context, Result, bail, ensure};
use lab::{Engine, Host, HostOptions, Lab, Propagation, Signal, Status};
use rustix::process::{Pid, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn a_host_boots_fast_and_is_its_own_machine() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    drop(lab.host(HostOptions::default())?);
    let started = Instant::now();
    let host = lab.host(HostOptions::default())?;
    let elapsed = started.elapsed();
    ensure!(elapsed < Duration::from_secs(1), "a host took {elapsed:?}");
    eprintln!("a host took {elapsed:?}");
    ensure!(host.sh("hostname")?.ok()?.text() == host.name());
    ensure!(
        host.sh("ip -4 address show eth0")?
            .ok()?
            .text()
            .contains(&host.address().to_string())
    );
    ensure!(host.sh("ls /dev | grep -c vda")?.text() == "0");
    Ok(())
}

#[test]
fn mounts_propagate_only_on_a_shared_host() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    for (propagation, shared) in [(Propagation::Shared, true), (Propagation::Private, false)] {
        let host = lab.host(HostOptions {
            propagation,
            ..HostOptions::default()
        })?;
        let mounts = host.mountinfo()?;
        ensure!(
            mounts.iter().all(|mount| mount.is_shared() == shared),
            "{propagation:?}: {mounts:?}"
        );
    }
    Ok(())
}

#[test]
fn exit_codes_and_signals_are_reported() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    host.sh("exit 42")?.code(42)?;
    ensure!(host.sh("kill -9 $$")?.status == Status::Signal(9));
    ensure!(host.run(&["no-such-program"])?.status == Status::Code(127));
    Ok(())
}

#[test]
fn a_command_that_hangs_is_killed_with_all_it_started() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    let before = host.processes().len();
    let limit = Duration::from_millis(300);
    let output = host
        .command(&["sh", "-c", "echo begun; setsid sleep 1000 & sleep 1000"])?
        .limit(limit)
        .run()?;
    ensure!(
        output.status == Status::TimedOut(limit) && output.text() == "begun",
        "{output}"
    );
    wait_until("the host is idle", || Ok(host.processes().len() <= before))
}

#[test]
fn a_daemon_does_not_keep_its_command_waiting() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    let output = host.sh("setsid sleep 1000 & echo left")?.ok()?;
    ensure!(
        output.text() == "left" && output.elapsed < Duration::from_secs(5),
        "{output}"
    );
    wait_until("the daemon runs", || Ok(host.sh("pidof sleep")?.success()))
}

#[test]
fn a_command_in_the_background_is_watched_and_signalled() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    let mut process = host.spawn(&["sh", "-c", "echo begun; exec sleep 1000"])?;
    wait_until("the process has printed its line", || {
        Ok(process.so_far()?.0 == b"begun\n")
    })?;
    ensure!(is_alive(process.pid()?));
    process.signal(Signal::TERM)?;
    let output = process.wait()?;
    ensure!(output.status == Status::Signal(15), "{output}");
    let process = host.spawn(&["sleep", "1000"])?;
    let pid = process.pid()?;
    drop(process);
    wait_until("the dropped process is dead", || Ok(!is_alive(pid)))
}

#[test]
fn loop_devices_are_given_back() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    host.sh("truncate -s 8388608 /srv/disk && losetup -f /srv/disk")?
        .ok()?;
    ensure!(loop_files()?.contains("/srv/disk"), "{}", loop_files()?);
    drop(host);
    ensure!(!loop_files()?.contains("/srv/disk"), "{}", loop_files()?);
    Ok(())
}

#[test]
fn files_are_copied_in_and_out() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    host.write("/srv/new dir/file", &bytes)?;
    ensure!(host.read("/srv/new dir/file")? == bytes);
    host.copy_in("/usr/bin/env", "/opt/env")?;
    host.sh("test -x /opt/env && test ! -u /opt/env")?.ok()?;
    Ok(())
}

#[test]
fn hosts_reach_each_other_and_nothing_else() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let (one, two) = (
        lab.host(HostOptions::default())?,
        lab.host(HostOptions::default())?,
    );
    one.sh(&format!("ping -c 1 -W 2 {}", two.address()))?.ok()?;
    ensure!(
        one.sh("ip route")?.text().lines().count() == 1,
        "a route leads out of the lab's network"
    );
    Ok(())
}

#[test]
fn a_mount_in_a_host_is_in_no_other_table() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let (one, two) = (
        lab.host(HostOptions::default())?,
        lab.host(HostOptions::default())?,
    );
    let two_before = two.mountinfo()?;
    one.sh("mkdir '/mnt/a b' && mount -t tmpfs seen '/mnt/a b'")?
        .ok()?;
    let has_it = |mounts: &[lab::Mount]| mounts.iter().any(|mount| mount.source == "seen");
    ensure!(has_it(&one.mountinfo()?));
    ensure!(
        lab.mount_tables()
            .values()
            .filter(|table| has_it(table))
            .count()
            == 1
    );
    ensure!(two.mountinfo()? == two_before);
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains("seen"));
    Ok(())
}

const SMALL: &str = "cd / && tar -c bin lib lib64 usr/bin/busybox usr/bin/mount usr/bin/sh usr/bin/sleep usr/bin/true";

#[test]
fn docker_runs_a_privileged_container_and_its_image_goes_to_podman() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    let host = lab.host(HostOptions::default())?;
    host.start(Engine::Docker, None)?;
    host.sh(&format!("{SMALL} | docker import - localhost/small"))?
        .ok()?;
    let seen =
        format!("{PRIVILEGED} --rm localhost/small sh -c 'hostname && ls /host/etc/inittab'");
    let seen = host.sh(&format!("docker {seen}"))?.ok()?;
    ensure!(
        seen.text() == format!("{}\n/host/etc/inittab", host.name()),
        "{seen}"
    );
    host.sh("docker run --rm --net=host localhost/small true")?
        .ok()?;
    host.sh(&format!(
        "docker {PRIVILEGED} -d --name box localhost/small sleep 1000"
    ))?
    .ok()?;
    host.sh("docker exec box mount -t tmpfs x /dev/shm")?.ok()?;
    host.sh("docker exec --privileged box true")?.ok()?;

    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join("small.tar");
    fs::write(
        &archive,
        host.sh("docker save localhost/small")?.ok()?.stdout,
    )?;
    let other = lab.host(HostOptions::default())?;
    other.load_image(Engine::Podman, &archive)?;
    podman_runs(&other)
}

const PRIVILEGED: &str = "run --privileged --net=host --pid=host -v /:/host";

fn podman_runs(host: &Host) -> Result<()> {
    let seen =
        format!("{PRIVILEGED} --rm localhost/small sh -c 'hostname && ls /host/etc/inittab'");
    let seen = host.sh(&format!("podman {seen}"))?.ok()?;
    ensure!(
        seen.text() == format!("{}\n/host/etc/inittab", host.name()),
        "{seen}"
    );
    host.sh("podman run --rm --net=host localhost/small true")?
        .ok()?;
    host.sh(&format!(
        "podman {PRIVILEGED} -d --name box localhost/small sleep 1000"
    ))?
    .ok()?;
    host.sh("podman exec box mount -t tmpfs x /dev/shm")?.ok()?;
    host.sh("podman exec --privileged box true")?.ok()?;
    Ok(())
}

#[test]
fn a_volume_is_on_three_servers_and_survives_the_loss_of_one() -> Result<()> {
    let Some(lab) = lab::shared() else {
        return Ok(());
    };
    // A cluster of its own: other tests need all servers of the shared one.
    let cluster = lab.gluster()?;
    cluster.create_volume("own")?;
    let [first, second, third] = cluster.nodes() else {
        bail!("not three servers")
    };
    let server = first.host().address();
    first
        .host()
        .sh(&format!("mount.glusterfs {server}:/own /mnt"))?
        .ok()?;
    let mounts = first.host().mountinfo()?;
    ensure!(
        mounts
            .iter()
            .any(|mount| mount.fstype == "fuse.glusterfs" && mount.target == Path::new("/mnt"))
    );
    first.host().write("/mnt/file", b"one")?;
    for node in cluster.nodes() {
        ensure!(node.host().read(node.brick("own").join("file"))? == b"one");
    }
    third.stop()?;
    first.host().write("/mnt/file", b"two")?;
    ensure!(second.host().read(second.brick("own").join("file"))? == b"two");
    third.start()?;
    wait_until("the third copy is healed", || {
        Ok(third.host().read(third.brick("own").join("file"))? == b"two")
    })
}

#[test]
fn nothing_is_left_when_a_test_is_killed() -> Result<()> {
    if lab::shared().is_none() {
        return Ok(());
    }
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    let mut shell = Killed(
        Command::new(env!("CARGO_BIN_EXE_lab"))
            .arg("shell")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut output = BufReader::new(shell.0.stdout.take().context("no output")?);
    let mut input = shell.0.stdin.take().context("no input")?;
    input.write_all(
        b"mount -t tmpfs x /mnt; truncate -s 8388608 /tmp/disk-of-a-killed-lab; losetup -f /tmp/disk-of-a-killed-lab; setsid sleep 1000 & grep 0:: /proc/1/cgroup; exec sleep 1000\n",
    )?;
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(
        loop_files()?.contains("/tmp/disk-of-a-killed-lab"),
        "{}",
        loop_files()?
    );
    let family = descendants(shell.0.id());
    ensure!(
        family.len() >= 6,
        "not supervisor, init, init, sleep, enter, sleep: {family:?}"
    );
    let cgroups: BTreeSet<PathBuf> = family.iter().filter_map(|pid| lab_cgroup(*pid)).collect();
    ensure!(cgroups.len() == 1, "not one lab: {cgroups:?}");

    drop(shell);
    wait_until("every process has ended", || {
        Ok(family.iter().all(|pid| !is_alive(*pid)))
    })?;
    wait_until("the cgroup has gone", || {
        Ok(cgroups.iter().all(|path| !path.exists()))
    })?;
    ensure!(fs::read_to_string("/proc/self/mountinfo")? == before);
    wait_until("the loop device is free", || {
        Ok(!loop_files()?.contains("/tmp/disk-of-a-killed-lab"))
    })
}

#[test]
fn a_killed_supervisor_takes_the_lab_along_and_the_next_one_sweeps() -> Result<()> {
    if lab::shared().is_none() {
        return Ok(());
    }
    let lab = Lab::start()?;
    let host = lab.host(HostOptions::default())?;
    let (family, cgroup) = (lab.processes(), lab.cgroup().to_owned());
    ensure!(
        family.len() == 2,
        "not the inits of the lab and of the host: {family:?}"
    );
    let supervisor = Pid::from_raw(i32::try_from(lab.supervisor())?).context("no supervisor")?;
    kill_process(supervisor, Signal::KILL)?;
    wait_until("every process has ended", || {
        Ok(family.iter().all(|pid| !is_alive(*pid)))
    })?;
    drop(host);
    drop(lab);
    ensure!(
        cgroup.exists(),
        "the supervisor's cgroup was removed without a supervisor"
    );
    drop(Lab::start()?);
    ensure!(!cgroup.exists(), "not swept: {}", cgroup.display());
    Ok(())
}

/// A process that gets SIGKILL on drop, so also when the test fails early.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files behind the machine's loop devices.
fn loop_files() -> Result<String> {
    let list = Command::new("losetup")
        .args(["--list", "--noheadings", "--output", "BACK-FILE"])
        .output()?;
    Ok(String::from_utf8(list.stdout)?)
}

/// All descendants of a process.
fn descendants(pid: u32) -> Vec<u32> {
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    children
        .iter()
        .flat_map(|child| std::iter::once(*child).chain(descendants(*child)))
        .collect()
}

/// Directory of the lab's cgroup that a process is in.
fn lab_cgroup(pid: u32) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let name = groups
        .lines()
        .find_map(|line| {
            line.strip_prefix("0::/")?
                .split('/')
                .find(|name| name.starts_with("spc-lab-"))
        })?
        .to_owned();
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(|root| Path::new(root).join(&name))
        .find(|path| path.exists())
}

/// Returns whether a process exists and is not a zombie.
fn is_alive(pid: impl std::fmt::Display) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition()? {
        ensure!(
            Instant::now() < end,
            "timed out after 30 s, waiting until {what}"
        );
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
