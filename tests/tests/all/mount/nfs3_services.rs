//! Services of NFSv3, without a mount: the kernel of these hosts has no NFS.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{AnyHost, Base, Engine, Propagation};

use crate::support::{
    Container, MINIMAL, Spc, until, with_container, with_lab, with_minimal_container,
};

/// Capabilities that rpcbind and rpc.statd need beyond the recommended run line.
const SERVICES: [&str; 5] = [
    "--cap-add=NET_BIND_SERVICE",
    "--cap-add=SETUID",
    "--cap-add=SETGID",
    "--cap-add=SETPCAP",
    "--cap-add=KILL",
];

/// Script that mount.nfs runs when no rpc.statd is running.
const START_STATD: &str = "/usr/sbin/start-statd";

/// Starts a process that looks like a running mount.nfs.
fn hold(spc: &Spc<'_>) -> Result<()> {
    spc.sh("cp /usr/bin/sleep /tmp/mount.nfs && { /tmp/mount.nfs 600 >/dev/null 2>&1 & }")?
        .ok()?;
    Ok(())
}

/// Ends the process, and makes `spc serve` check the host's mounts.
fn let_go(spc: &Spc<'_>) -> Result<()> {
    spc.sh("kill $(pidof mount.nfs)")?.ok()?;
    stir(spc)
}

/// Names of the services that run on a host, and of zombies.
fn running(spc: &Container<impl AnyHost>) -> Result<Vec<String>> {
    let script = r#"cat /proc/[0-9]*/status 2>/dev/null | awk '
        /^Name:/ { name = $2 }
        /^State:/ && $2 == "Z" { print "zombie " name; next }
        /^State:/ && name ~ /^(rpcbind|rpc\.statd|sm-notify)$/ { print name }' | sort"#;
    let names = spc.host.sh(script)?.ok()?.text();
    Ok(names.lines().map(str::to_owned).collect())
}

/// Both services, each with one process.
pub const BOTH: [&str; 2] = ["rpc.statd", "rpcbind"];

/// Checks that exactly these services run now.
pub fn ensure_running(spc: &Container<impl AnyHost>, expected: &[&str]) -> Result<()> {
    let running = running(spc)?;
    ensure!(running == expected, "{running:?}, not {expected:?}");
    Ok(())
}

/// Waits until exactly these services run.
pub fn until_running(spc: &Container<impl AnyHost>, expected: &[&str]) -> Result<()> {
    until(&format!("{expected:?} run"), || {
        Ok(running(spc)? == expected)
    })
}

/// Makes `spc serve` check the host's mounts.
fn stir(spc: &Spc<'_>) -> Result<()> {
    spc.host
        .sh("mkdir -p /mnt/stir && mount -t tmpfs stir /mnt/stir && umount /mnt/stir")?
        .ok()?;
    Ok(())
}

/// Prints what the services have open. Leaves out a pipe that no other process has: that of a
/// service's own output.
const HELD: &str = r#"
    for name in rpcbind rpc.statd; do
        own=/proc/$(pidof $name)
        for fd in $own/fd/*; do
            file=$(readlink $fd)
            case $file in
            pipe:*)
                for other in /proc/[0-9]*; do
                    [ $other = $own ] || readlink $other/fd/*
                done 2>/dev/null | grep -xF "$file" ;;
            *) echo "$file" ;;
            esac
        done
    done
    true"#;

#[test]
fn services_are_started_once_and_end_when_nothing_needs_them() {
    with_lab(|lab| {
        let arguments = [&MINIMAL[..], &SERVICES].concat();
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        for base in [Base::Trixie, Base::Bookworm] {
            let spc = Spc::start(lab, shared, docker, base, &arguments)?;
            ensure_running(&spc, &[])?;
            hold(&spc)?;
            // mount.nfs runs the script with an empty environment.
            spc.sh(&format!(
                "for i in 1 2 3 4; do env -i {START_STATD} & pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || exit; done"
            ))?
            .ok()?;
            ensure_running(&spc, &BOTH)?;
            let registered = spc.exec(&["rpcinfo", "-p"])?.ok()?.text();
            ensure!(registered.contains("100024"), "{registered}");
            // The services are detached: no signal of a terminal reaches them, and they hold no
            // descriptor of their caller.
            let held = spc.sh(HELD)?.ok()?.text();
            ensure!(
                !held.contains("/run/spc") && !held.contains("pipe:"),
                "{held}"
            );
            stir(&spc)?;
            thread::sleep(Duration::from_secs(1));
            ensure_running(&spc, &BOTH)?;
            let_go(&spc)?;
            until_running(&spc, &[])?;
            let left = spc.sh("ls -A /run/spc/services")?.ok()?.text();
            ensure!(left == "lock", "{left}");
        }
        Ok(())
    });
}

#[test]
fn running_services_are_used_and_left_alone() {
    with_container(|spc| {
        // The launcher did not start these services, so it treats them as the host's own.
        spc.sh("rpcbind")?.ok()?;
        hold(spc)?;
        let own = spc.exec(&["pidof", "rpcbind"])?.ok()?.text();
        spc.exec(&[START_STATD])?.ok()?;
        ensure_running(spc, &BOTH)?;
        let_go(spc)?;
        until_running(spc, &["rpcbind"])?;
        ensure!(spc.exec(&["pidof", "rpcbind"])?.ok()?.text() == own);
        let registered = spc.exec(&["rpcinfo", "-p"])?.ok()?.text();
        ensure!(
            !registered.contains("100024"),
            "left registrations: {registered}"
        );
        Ok(())
    });
}

#[test]
fn a_broken_service_is_restarted() {
    with_container(|spc| {
        hold(spc)?;
        spc.exec(&[START_STATD])?.ok()?;
        let statd = spc.exec(&["pidof", "rpc.statd"])?.ok()?.text();
        // A new rpcbind does not know the running statd.
        spc.sh("kill -9 $(pidof rpcbind)")?.ok()?;
        spc.exec(&[START_STATD])?.ok()?;
        until_running(spc, &BOTH)?;
        ensure!(spc.exec(&["pidof", "rpc.statd"])?.ok()?.text() != statd);
        // A stopped statd, as a command leaves it when it is killed during its check.
        spc.sh("kill -STOP $(pidof rpc.statd)")?.ok()?;
        spc.exec(&[START_STATD])?.ok()?;
        until_running(spc, &BOTH)?;
        // No command needs the services now, but a mount may be about to.
        spc.sh("kill -9 $(pidof rpcbind rpc.statd)")?.ok()?;
        stir(spc)?;
        until_running(spc, &BOTH)
    });
}

#[test]
fn services_that_the_container_may_not_run_are_an_error_with_a_hint() {
    with_minimal_container(|spc| {
        let output = spc.exec(&[START_STATD])?.code(2)?;
        let error = output.error_text();
        for says in ["cannot start rpcbind", "hint: ", "NET_BIND_SERVICE"] {
            ensure!(error.contains(says), "{output}");
        }
        eprintln!("{error}");
        until_running(spc, &[])
    });
}
