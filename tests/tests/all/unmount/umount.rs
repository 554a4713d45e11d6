//! Unmounts: escalation, lock holders of a busy mount, and mounts that do not respond. Every
//! command returns within its limit and reports the truth.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Base, Host, Output, Process};

use crate::support::{Container, Spc, VmSpc, until, with_container, with_lab};

/// A process that uses a mount until this is dropped, and its PID on the host.
struct Holder {
    process: Process,
    pid: String,
}

impl Holder {
    /// Runs a script that prints its PID first.
    fn start(host: &Host<'_>, script: &str) -> Result<Self> {
        let mut process = host.spawn(&["sh", "-c", &format!("echo $$; {script}")])?;
        let mut pid = String::new();
        until("a holder has started", || {
            let (stdout, error) = process.so_far()?;
            let error = String::from_utf8_lossy(&error);
            ensure!(error.is_empty(), "{script}: {error}");
            pid = String::from_utf8_lossy(&stdout).trim().to_owned();
            Ok(!pid.is_empty())
        })?;
        Ok(Self { process, pid })
    }
}

/// Checks that a command fails within a limit in seconds, with these texts in its error.
fn refused(
    spc: &Container<impl AnyHost>,
    words: &[&str],
    limit: u64,
    expected: &[&str],
) -> Result<()> {
    let output = spc.exec(words)?.code(32)?;
    let error = output.error_text();
    for what in expected {
        ensure!(error.contains(what), "no {what:?} in the output: {output}");
    }
    ensure!(output.elapsed < Duration::from_secs(limit), "{output}");
    eprintln!("{} ({:.1?})\n{error}\n", words.join(" "), output.elapsed);
    Ok(())
}

/// Checks that a command succeeds within a limit in seconds.
fn within(spc: &Container<impl AnyHost>, words: &[&str], limit: u64) -> Result<Output> {
    let output = spc.exec(words)?.ok()?;
    ensure!(output.elapsed < Duration::from_secs(limit), "{output}");
    Ok(output)
}

#[test]
fn a_busy_mount_says_who_holds_it() {
    with_container(|spc| {
        let host = &spc.host;
        host.sh("mkdir /mnt/data && mkdir -p /mnt/private && mount -t tmpfs private /mnt/private && mount --make-private /mnt/private && mkdir /mnt/private/data")?.ok()?;
        // From now on, another container has a copy of the mounts below /mnt.
        let other = [
            "docker",
            "run",
            "-d",
            "--name",
            "other",
            "-v",
            "/mnt:/there:rslave",
            "--entrypoint",
            "sh",
            Base::Trixie.image(),
            "-c",
            "while ! cd /there/data/sub; do sleep 0.1; done; exec sleep 1000",
        ];
        host.run(&other)?.ok()?;
        let umount = ["spc", "umount", "/mnt/data"];
        spc.mount(&["-t", "tmpfs", "scratch", "/mnt/data"])?;
        host.sh("mkdir /mnt/data/sub /mnt/data/below && echo x >/mnt/data/file && cp /bin/busybox /mnt/data/busybox")?.ok()?;
        until("the other container is there", || {
            Ok(host.sh("docker top other | grep -c 'sleep 1000'")?.text() == "1")
        })?;
        host.sh("docker exec spc true")?.ok()?;

        let works = Holder::start(host, "cd /mnt/data/sub && exec sleep 1000")?;
        let opens = Holder::start(host, "exec sleep 1000 <'/mnt/data/file'")?;
        let runs = Holder::start(host, "exec /mnt/data/busybox sleep 1000")?;
        let rooted = Holder::start(host, "exec chroot /mnt/data /busybox sleep 1000")?;
        // A library that the other container has mapped but not open.
        let preload = "cp /lib/*/libc.so.6 /there/data/library && export LD_PRELOAD=/there/data/library && exec sleep 1000";
        let maps = Holder::start(host, &format!("exec docker exec other sh -c '{preload}'"))?;
        let mapped = || {
            Ok(host
                .sh("grep -l ' /there/data/library' /proc/[0-9]*/maps")?
                .success())
        };
        until("the library is mapped", mapped)?;
        host.sh("mount -t tmpfs below /mnt/data/below")?.ok()?;
        let id = host
            .sh("docker inspect --format '{{.Id}}' other | cut -c 1-12")?
            .ok()?
            .text();
        let expected = [
            "cannot unmount /mnt/data: Device or resource busy",
            &format!("{} (sleep) works in /mnt/data/sub", works.pid),
            &format!("{} (sleep) has /mnt/data/file open", opens.pid),
            &format!("{} (busybox) runs /mnt/data/busybox", runs.pid),
            &format!("(sleep, in container {id}) has /there/data/library mapped"),
            &format!(
                "{} (busybox) works in /mnt/data, has /mnt/data as its root, and 1 more",
                rooted.pid
            ),
            &format!("(sleep, in container {id}) works in /there/data/sub"),
            "/mnt/data/below is mounted below it (tmpfs)",
            "hint: unmount what is mounted below it first",
        ];
        refused(spc, &umount, 10, &expected)?;
        ensure!(spc.record("/mnt/data")?["state"] == "ok");

        // After some holders have exited, the error names the remaining ones.
        host.sh("umount /mnt/data/below && docker rm -f other")?
            .ok()?;
        drop((works, runs, rooted, maps));
        let expected = ["/mnt/data/file open", "hint: end what uses it"];
        refused(spc, &umount, 10, &expected)?;
        refused(spc, &["spc", "umount", "-f", "/mnt/data"], 10, &expected)?;
        within(spc, &["spc", "umount", "-f", "-l", "/mnt/data"], 5)?;
        ensure!(
            spc.on("/mnt/data")?.is_empty(),
            "-l left the mount on its target"
        );
        ensure!(opens.process.pid().is_ok());
        spc.is_clean()?;

        // A process that uses another mount of the same file system does not count.
        spc.mount(&["-t", "tmpfs", "scratch", "/mnt/data"])?;
        host.sh("echo x >/mnt/data/file && mount --bind /mnt/data /mnt/private/data")?
            .ok()?;
        let elsewhere = Holder::start(host, "exec sleep 1000 </mnt/private/data/file")?;
        within(spc, &umount, 5)?;
        drop(elsewhere);
        spc.is_clean()
    });
}

/// Directory of the container. The daemon of a mount of it runs in the container.
const IN_CONTAINER: &str = "/srv/source";
/// Directory of the host. The daemon of a mount of it runs in a client root file system.
const ON_HOST: &str = "/host/srv/source";

/// Mounts a directory with bindfs, and returns the PID of its daemon.
fn bindfs(spc: &Spc<'_>, source: &str, target: &str) -> Result<String> {
    let make = format!("mkdir -p {source}/sub && echo through >{source}/file");
    spc.sh(&make)?.ok()?;
    let options = "x-mount.mkdir,x-spc.repair=no";
    let mount = ["-t", "fuse.bindfs", "-o", options];
    spc.mount(&[&mount[..], &[source, target]].concat())?;
    Ok(spc.record(target)?["daemon"][0].to_string())
}

#[test]
fn a_mount_that_does_not_respond_can_be_unmounted() {
    with_container(|spc| {
        let host = &spc.host;
        let daemon = bindfs(spc, IN_CONTAINER, "/mnt/data")?;
        // A mount that hangs only because its parent mount does.
        let below = ["spc", "mount", "-t", "tmpfs", "below", "/mnt/data/sub"];
        spc.exec(&below)?.ok()?;
        host.sh("mkdir /mnt/other")?.ok()?;
        spc.mount(&["-t", "tmpfs", "other", "/mnt/other"])?;
        spc.sh(&format!("kill -STOP {daemon}"))?.ok()?;
        // The kernel caches attributes of the directory for a second.
        std::thread::sleep(Duration::from_millis(1100));

        let list = within(spc, &["spc", "ls"], 8)?.text();
        let states = |list: &str| -> Vec<String> {
            let rows = list
                .lines()
                .skip(1)
                .filter_map(|row| row.split_whitespace().nth(3));
            rows.map(str::to_owned).collect()
        };
        ensure!(states(&list) == ["hung", "hung", "ok"], "{list}");

        // The mount below cannot be reached, and the error names the cause. Other mounts work.
        refused(
            spc,
            &["spc", "umount", "/mnt/data/sub"],
            25,
            &[
                "does not answer",
                "hint: it is on /mnt/data, which does not answer",
            ],
        )?;
        let outside = ["spc", "umount", "/mnt/data/sub/../sub"];
        refused(
            spc,
            &outside,
            25,
            &["cannot be reached", "does not respond", "hint: "],
        )?;
        within(spc, &["spc", "umount", "/mnt/other"], 5)?;

        // A process waits in the mount, but none is found as its holder.
        let waits = Holder::start(host, "exec cat /mnt/data/file")?;
        let expected = ["Device or resource busy", "hint: "];
        refused(spc, &["spc", "umount", "/mnt/data"], 25, &expected)?;
        // `-R` also unmounts all mounts below.
        within(spc, &["spc", "umount", "-R", "-f", "-l", "/mnt/data"], 60)?;
        ensure!(spc.on("/mnt/data")?.is_empty() && spc.on("/mnt/data/sub")?.is_empty());
        let ended = waits.process.wait()?.code(1)?;
        ensure!(ended.elapsed < Duration::from_secs(60), "{ended}");
        until("nothing is left of the mount", || {
            Ok(spc.is_clean().is_ok())
        })
    });
}

#[test]
fn force_aborts_the_requests_to_a_stopped_daemon() {
    with_container(|spc| {
        let daemon = bindfs(spc, ON_HOST, "/mnt/data")?;
        spc.sh(&format!("kill -STOP {daemon}"))?.ok()?;
        let waits = Holder::start(&spc.host, "exec cat /mnt/data/file")?;
        std::thread::sleep(Duration::from_millis(500));
        let waiting = format!("{} (cat) waits for /mnt/data/file", waits.pid);
        let expected = ["busy", &*waiting, "with -f"];
        refused(spc, &["spc", "umount", "/mnt/data"], 15, &expected)?;
        within(spc, &["spc", "umount", "-f", "/mnt/data"], 20)?;
        let ended = waits.process.wait()?.code(1)?;
        ensure!(!ended.error_text().is_empty(), "{ended}");
        spc.is_clean()?;

        // An open file keeps a mount whose daemon is stopped.
        let daemon = bindfs(spc, ON_HOST, "/mnt/data")?;
        let opens = Holder::start(&spc.host, "exec sleep 1000 </mnt/data/file")?;
        spc.sh(&format!("kill -STOP {daemon}"))?.ok()?;
        let expected = [
            &*format!("{} (sleep) has /mnt/data/file open", opens.pid),
            "detach it with -l",
        ];
        refused(spc, &["spc", "umount", "-f", "/mnt/data"], 20, &expected)?;
        ensure!(spc.record("/mnt/data")?["state"] == "stale");
        within(spc, &["spc", "umount", "-f", "-l", "/mnt/data"], 20)?;
        // The daemon, still stopped, serves no other mount.
        spc.is_clean()
    });
}

#[test]
fn a_daemon_ends_with_the_last_use_of_its_mount() {
    with_container(|spc| {
        let host = &spc.host;
        // A daemon that does not end by itself.
        let daemon = bindfs(spc, ON_HOST, "/mnt/data")?;
        spc.sh(&format!("kill -STOP {daemon}"))?.ok()?;
        host.sh("umount -l /mnt/data")?.ok()?;
        until("the stopped daemon is gone", || Ok(spc.is_clean().is_ok()))?;

        // A daemon that is still needed: an open file uses the mount after `umount -l`, or a
        // container has a copy of the mount.
        let daemon = bindfs(spc, ON_HOST, "/mnt/data")?;
        let opens = Holder::start(
            host,
            "exec 3</mnt/data/file; sleep 3; read -r line <&3; echo $line",
        )?;
        host.sh("umount -l /mnt/data")?.ok()?;
        ensure!(opens.process.wait()?.ok()?.text().ends_with("\nthrough"));
        until("its daemon has ended", || Ok(spc.is_clean().is_ok()))?;
        ensure!(!spc.sh(&format!("kill -0 {daemon}"))?.success());

        let daemon = bindfs(spc, ON_HOST, "/mnt/data")?;
        let other = [
            "docker",
            "run",
            "-d",
            "--name",
            "other",
            "-v",
            "/mnt/data:/there",
            "--entrypoint",
            "sleep",
            Base::Trixie.image(),
            "1000",
        ];
        host.run(&other)?.ok()?;
        let reads = || {
            Ok::<_, anyhow::Error>(
                host.sh("docker exec other cat /there/file")?.text() == "through",
            )
        };
        ensure!(reads()?);
        within(spc, &["spc", "umount", "/mnt/data"], 10)?;
        ensure!(
            spc.on("/mnt/data")?.is_empty() && reads()?,
            "the other container lost its volume"
        );
        host.sh("docker rm -f other")?.ok()?;
        until("its daemon has ended", || {
            Ok(!spc.sh(&format!("kill -0 {daemon}"))?.success())
        })?;
        spc.is_clean()
    });
}

#[test]
fn a_thousand_mounts_are_probed_at_once() {
    with_container(|spc| {
        let stopped = ["/mnt/a", "/mnt/b", "/mnt/c"];
        for target in stopped {
            let daemon = bindfs(spc, IN_CONTAINER, target)?;
            spc.sh(&format!("kill -STOP {daemon}"))?.ok()?;
        }
        let many = "for n in $(seq 1000); do spc mount -t tmpfs -o size=4k,x-mount.mkdir x /mnt/many/$n || exit 1; done";
        let exec = ["docker", "exec", "spc", "sh", "-c", many];
        let limit = Duration::from_secs(300);
        let made = spc.host.command(&exec)?.limit(limit).run()?.ok()?;
        let list = within(spc, &["spc", "ls"], 10)?;
        let count = |state: &str| {
            let state = format!(" {state} ");
            list.text()
                .lines()
                .filter(|line| line.contains(&state))
                .count()
        };
        ensure!((count("ok"), count("hung")) == (1000, 3), "{list}");
        eprintln!(
            "1000 mounts in {:.1?}; spc ls, with three that hang: {:.1?}",
            made.elapsed, list.elapsed
        );
        let all = ["docker", "exec", "spc", "spc", "umount", "--all"];
        let gone = spc.host.command(&all)?.limit(limit).run()?.ok()?;
        eprintln!("unmounted in {:.1?}", gone.elapsed);
        until("nothing is left of the mounts", || {
            Ok(spc.is_clean().is_ok())
        })
    });
}

/// Writes a file that stays in the page cache, and then disconnects the network.
const CUT_OFF: &str =
    "dd if=/dev/zero of=/mnt/nfs/dirty bs=64k count=16 2>/dev/null && ip link set eth0 down";

#[test]
fn a_lost_nfs_server_blocks_no_unmount() {
    with_lab(|lab| {
        let server = lab::knfsd().context("no lab")?.vm().address();
        let spc = VmSpc::privileged(lab)?;
        let host = &spc.host;
        let (nfs, other) = (format!("{server}:/data"), "/mnt/other");
        let mount = ["-t", "nfs", "-o", "x-mount.mkdir", &nfs, "/mnt/nfs"];
        let scratch = ["-t", "tmpfs", "-o", "x-mount.mkdir", "x", other];
        let back = || host.sh("ip link set eth0 up").and_then(Output::ok);
        let umount = ["spc", "umount", "/mnt/nfs"];

        // A process waits for the server. Another mount works.
        spc.mount(&mount)?;
        spc.mount(&scratch)?;
        host.sh("ip link set eth0 down")?.ok()?;
        let waits = host
            .sh("cat /mnt/nfs/sub/file >/dev/null 2>/run/waits & echo $!")?
            .ok()?
            .text();
        let list = within(&spc, &["spc", "ls"], 15)?.text();
        ensure!(list.contains(" hung ") && list.contains(" ok "), "{list}");
        let waiting = format!("{waits} (cat) waits for /mnt/nfs/sub/file");
        refused(&spc, &umount, 25, &["busy", &waiting, "with -f"])?;
        within(&spc, &["spc", "umount", other], 15)?;
        within(&spc, &["spc", "umount", "-f", "/mnt/nfs"], 40)?;
        ensure!(spc.on("/mnt/nfs")?.is_empty());
        let error = host.sh("cat /run/waits")?.text();
        // cat may not know the kernel's errno by name.
        ensure!(!error.is_empty(), "the waiting process got no error");
        back()?;

        // The last write has not reached the server. The unmount succeeds, and the command reports
        // that the kernel has not finished.
        spc.mount(&mount)?;
        host.sh(CUT_OFF)?.ok()?;
        let late = spc.exec(&umount)?.code(2)?;
        let expected =
            "/mnt/nfs is unmounted, but the kernel has not finished: its server does not answer";
        ensure!(
            late.error_text().contains(expected) && late.elapsed < Duration::from_secs(30),
            "{late}"
        );
        ensure!(spc.on("/mnt/nfs")?.is_empty());
        back()?;
        let written = format!("{}/data/dirty", lab::Knfsd::EXPORTS);
        let server = lab::knfsd().context("no lab")?.vm();
        until("the server has all that was written", || {
            Ok(server.sh(&format!("cat {written} | wc -c"))?.text() == "1048576")
        })?;
        server.sh(&format!("rm {written}"))?.ok()?;

        // A lazy unmount does not wait.
        spc.mount(&mount)?;
        host.sh("ip link set eth0 down")?.ok()?;
        within(&spc, &["spc", "umount", "-l", "/mnt/nfs"], 25)?;
        back()?;
        spc.is_clean()
    });
}
