//! The lab's virtual machines: a kernel of their own, commands with output and exit codes, and an
//! end with the lab.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cluster, Lab, Root, Status, VmOptions};

use crate::support::{VmSpc, until, with_gluster, with_lab};

#[test]
fn commands_have_output_exit_codes_and_limits() {
    with_lab(|lab| {
        let vm = lab.vm(VmOptions::default())?;
        let release = vm.run(&["uname", "-r"])?.ok()?.text();
        let own = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        ensure!(
            release.starts_with("6.1.") && release != own.trim(),
            "{release}"
        );
        vm.sh("echo out; echo err >&2; exit 7")?.code(7)?;
        let both = vm.sh("echo out; echo err >&2; kill -9 $$")?;
        ensure!(both.status == Status::Signal(9), "{both}");
        ensure!(both.text() == "out" && both.error_text() == "err", "{both}");
        let echo = vm.command(&["cat"]).input(b"\0\xff\n").run()?.ok()?;
        ensure!(echo.stdout == b"\0\xff\n", "{echo}");
        let limit = Duration::from_secs(1);
        let slow = vm.command(&["sleep", "100"]).limit(limit).run()?;
        ensure!(slow.status == Status::TimedOut(limit), "{slow}");
        ensure!(
            vm.sh("pidof sleep")?.text().is_empty(),
            "the command was killed"
        );
        // A daemon that keeps the output open does not delay the report.
        vm.sh("sleep 50 & echo started")?.ok()?;
        vm.write("/some/where/file", b"written")?;
        ensure!(vm.read("/some/where/file")? == b"written");
        let root = vm
            .mountinfo()?
            .into_iter()
            .find(|mount| mount.target == Path::new("/"));
        ensure!(root.is_some_and(|root| root.is_shared()), "/ is private");
        Ok(())
    });
}

#[test]
fn machines_and_hosts_are_on_one_network() {
    with_lab(|lab| {
        let (vm, host) = (lab.vm(VmOptions::default())?, lab.host(Default::default())?);
        host.sh("mkdir /www && echo served > /www/file && httpd -p 80 -h /www")?
            .ok()?;
        let fetch = format!("wget -qO - http://{}/file", host.address());
        ensure!(vm.sh(&fetch)?.ok()?.text() == "served");
        ensure!(vm.run(&["hostname"])?.ok()?.text() == vm.name());
        let ping = format!("ping -c 1 -W 5 {}", vm.address());
        host.sh(&ping)?.ok()?;
        Ok(())
    });
}

#[test]
fn systemd_is_the_first_process_of_a_systemd_machine() {
    with_lab(|lab| {
        let vm = lab.vm(SYSTEMD)?;
        ensure!(vm.read("/proc/1/comm")? == b"systemd\n");
        until("systemd has started", || {
            let state = vm.run(&["systemctl", "is-system-running"])?.text();
            ensure!(state != "degraded", "{}", vm.sh("systemctl --failed")?);
            Ok(state == "running")
        })
    });
}

#[test]
fn a_machine_that_keeps_its_files_can_be_rebooted() {
    with_lab(|lab| {
        let vm = lab.vm(VmOptions {
            keeps: true,
            ..VmOptions::default()
        })?;
        vm.sh("echo kept >/etc/kept; echo gone >/run/gone; sync")?
            .ok()?;
        vm.reboot()?;
        ensure!(vm.read("/etc/kept")? == b"kept\n");
        vm.sh("test -e /run/gone")?.code(1)?;
        // The next machine starts without the files.
        let other = lab.vm(VmOptions {
            keeps: true,
            ..VmOptions::default()
        })?;
        other.sh("test -e /etc/kept")?.code(1)?;
        Ok(())
    });
}

#[test]
fn machines_from_one_saved_state_differ() {
    with_lab(|lab| {
        let machines = [lab.vm(VmOptions::default())?, lab.vm(VmOptions::default())?];
        let facts = "cat /etc/hostname /sys/class/net/eth0/address; head -c 16 /dev/urandom | hexdump; date +%s";
        let mut before = Vec::new();
        for vm in &machines {
            let text = vm.sh(facts)?.ok()?.text();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            let seconds: u64 = lines.pop().unwrap_or_default().parse()?;
            let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
            ensure!(now.abs_diff(seconds) < 5, "{seconds} instead of {now}");
            ensure!(lines[0] == vm.name(), "{lines:?}");
            for line in &lines[..3] {
                ensure!(!before.contains(line), "{line} twice");
            }
            before.extend(lines);
        }
        Ok(())
    });
}

/// The lab starts commands in the container itself, because runc takes long on an emulated machine.
#[test]
fn commands_are_in_the_container_as_runc_puts_them_there() {
    with_lab(|lab| {
        let spc = VmSpc::boot(lab, VmOptions::default())?;
        let script = "pwd; cd /proc/self; readlink root ns/*; cat cgroup; id; env | grep -v ^OLDPWD | sort; grep -E '^(Cap|NoNew|Seccomp|Sig(Blk|Ign))' status; grep -v files limits; cat oom_score_adj; hostname";
        let own = spc.exec(&["sh", "-c", script])?.ok()?.text();
        // A shell in between, so that the lab does not see runc. Go raises the limit of open files.
        let by_runc = spc.host.sh(&format!("runc exec spc sh -c \"{script}\""))?;
        let by_runc = by_runc.ok()?.text();
        ensure!(own == by_runc, "{own}\nby runc:\n{by_runc}");
        let directory = spc.exec_in("/etc", &["pwd"])?.ok()?.text();
        ensure!(directory == "/etc", "{directory}");
        spc.exec(&["no-such-program"])?.code(127)?;
        Ok(())
    });
}

#[test]
fn nothing_of_a_machine_is_left() {
    with_lab(|_| {
        let lab = Lab::start()?;
        let vm = lab.vm(VmOptions::default())?;
        let qemu = emulators(&lab);
        ensure!(qemu.len() == 1, "{qemu:?}");
        drop(vm);
        ensure!(emulators(&lab).is_empty(), "{:?}", emulators(&lab));
        // The number and the cable are free again.
        lab.vm(VmOptions::default())?.run(&["true"])?.ok()?;
        Ok(())
    });
}

fn emulators(lab: &Lab) -> Vec<i32> {
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let all = lab.processes().into_iter();
    all.filter(|pid| name(pid).starts_with("qemu")).collect()
}

#[test]
fn glusterfs_mounts_on_a_virtual_machine() {
    with_gluster(|lab, cluster| {
        let spc = VmSpc::privileged(lab)?;
        spc.exec(&["spc", "doctor"])?.ok()?;
        let source = source(cluster);
        let mount = ["-t", "glusterfs", &source];
        spc.host.sh(TRACE)?.ok()?;
        spc.life(&mount, "/mnt/data", ["fuse.glusterfs", &source], |record| {
            ensure!(record["route"] == "preload", "{record}");
            is_on_the_bricks(&spc, cluster)
        })?;
        // The client namespace starts with the kernel's own mounts, and without the host's.
        let copied = spc.host.sh(COPIED)?.ok()?.text().trim().to_owned();
        ensure!(copied == "2", "{copied} mounts were copied");
        spc.is_clean()
    });
}

/// Makes the kernel trace each copy of a mount.
const TRACE: &str = "set -e
mkdir /mnt/other && for at in $(seq 60); do mkdir /mnt/other/$at && mount -t tmpfs other /mnt/other/$at; done
mount -t tracefs tracefs /sys/kernel/tracing && cd /sys/kernel/tracing
echo clone_mnt >set_ftrace_filter && echo function >current_tracer && echo 1 >tracing_on";

/// Number of mounts copied with a namespace. A clone is a different event.
const COPIED: &str = "grep -c copy_tree /sys/kernel/tracing/trace";

#[test]
fn glusterfs_mounts_under_systemd() {
    with_gluster(|lab, cluster| {
        let spc = VmSpc::boot(lab, SYSTEMD)?;
        let (source, before) = (source(cluster), spc.mounts()?);
        let mount = ["-t", "glusterfs", &source, "/mnt/data"];
        spc.host.run(&["mkdir", "/mnt/data"])?.ok()?;
        spc.mount(&mount)?;
        // systemd's services with their own mount namespace get an entry each, as with any mount of
        // the host.
        ensure!(spc.on("/mnt/data")?.len() == 1 && spc.mounts()? == before);
        is_on_the_bricks(&spc, cluster)?;
        spc.host.run(&["umount", "/mnt/data"])?.ok()?;
        until("spc serve has noticed the unmount", || {
            Ok(spc.is_clean().is_ok())
        })
    });
}

const SYSTEMD: VmOptions = VmOptions {
    root: Root::Systemd,
    image: None,
    memory: 1024,
    keeps: false,
};

fn source(cluster: &Cluster<'_>) -> String {
    format!("{}:/vol", cluster.nodes()[0].host().address())
}

/// Checks that a file written through the mount is on each brick.
fn is_on_the_bricks(spc: &VmSpc<'_>, cluster: &Cluster<'_>) -> Result<()> {
    let file = format!("from {}", spc.host.name());
    spc.host
        .write(format!("/mnt/data/{file}"), file.as_bytes())?;
    for node in cluster.nodes() {
        let brick = node.brick("vol").join(&file);
        ensure!(node.host().read(brick)? == file.as_bytes());
    }
    Ok(())
}
