//! Users of the host without privileges, who shape what spc reads: their processes, names,
//! connections and servers. Commands neither wait for them nor take them for its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Base, Libc, Process, program};

use crate::support::{PRIVILEGED, Spc, until, with_lab};

/// Address of the metrics.
const ADDRESS: &str = "127.0.0.1:9750";

/// Attacks, compiled from `tests/programs/hostile.c`.
const HOSTILE: &str = "/opt/hostile";

/// Makes mounts named NAME1 to NAMEn in LANES lanes: mounts each, kills its daemon, waits until
/// spc has replaced it, and unmounts it. Prints the milliseconds of each step.
const LIVES: &str = r#"
now() { date +%s%N; }
step() { echo "$1 $((($(now) - begin) / 1000000))"; begin=$(now); }
life() {
    begin=$(now) dir=/proc/1/root/mnt/$1
    spc mount -t fuse.bindfs -o x-mount.mkdir /host/srv/source /mnt/$1 || exit
    step mount
    old=$(stat -c %d $dir)
    kill -9 $(cat /proc/1/root/sys/fs/cgroup/spc/mnt-$1/cgroup.procs) || exit
    begin=$(now)
    until new=$(stat -c %d $dir 2>/dev/null) && [ "$new" != "$old" ]; do sleep 0.02; done
    # The record still names the repair for a moment, and an unmount would end it.
    while grep -hs "\"/mnt/$1\"" /proc/1/root/run/spc/mounts/* | grep -q '"making"'; do sleep 0.02; done
    step repair
    spc umount /mnt/$1 || exit
    step umount
}
for lane in $(seq $LANES); do
    (for number in $(seq $lane $LANES $COUNT); do life $NAME$number; done) &
done
wait
"#;

/// Limit for all lives, also beside other tests.
const LIVES_LIMIT: Duration = Duration::from_secs(240);

/// Runs this many lives, and returns the longest time of each step in milliseconds.
fn lives(spc: &Spc<'_>, name: &str, count: u32) -> Result<BTreeMap<String, u64>> {
    let script = format!("NAME={name} COUNT={count} LANES=4\n{LIVES}");
    let started = Instant::now();
    let words = ["docker", "exec", "-i", "spc", "sh", "-c", &script];
    let output = spc.host.command(&words)?.limit(LIVES_LIMIT).run()?.ok()?;
    let mut longest = BTreeMap::new();
    let text = output.text();
    for line in text.lines() {
        let (step, time) = line.split_once(' ').context("no time")?;
        let entry = longest.entry(step.to_owned()).or_insert(0);
        *entry = time.parse::<u64>()?.max(*entry);
    }
    eprintln!("{name}: {longest:?} ms, {:.1?} in all", started.elapsed());
    let steps = text.lines().count();
    ensure!(steps == 3 * count as usize, "{steps} steps: {output}");
    Ok(longest)
}

/// Starts an attack, and waits until it is under way.
fn attack(spc: &Spc<'_>, what: &str, with: &str) -> Result<Process> {
    let mut attack = spc.host.spawn(&[HOSTILE, what, with])?;
    until("the attack is under way", || {
        let (printed, error) = attack.so_far()?;
        ensure!(error.is_empty(), "{}", String::from_utf8_lossy(&error));
        Ok(printed == b"ready\n")
    })?;
    Ok(attack)
}

/// Checks that the health is told while others hold connections open.
fn health_is_told(spc: &Spc<'_>) -> Result<()> {
    let ask = format!(
        "for i in $(seq 20); do timeout 1 wget -qO - http://{ADDRESS}/healthz || exit 1; done"
    );
    let told = spc.host.sh(&ask)?.ok()?.text();
    ensure!(
        told.lines().count() == 20 || told == "ok".repeat(20),
        "{told}"
    );
    Ok(())
}

/// Checks that the memory of the container's first process is small.
fn is_small(spc: &Spc<'_>) -> Result<()> {
    let peak = spc
        .sh(&format!("grep VmHWM /proc/{}/status", spc.pid()?))?
        .ok()?
        .text();
    let peak = peak.split_whitespace().nth(1).context("no peak")?;
    ensure!(peak.parse::<u64>()? < 64 * 1024, "{peak} kB");
    Ok(())
}

/// Checks that a busy mount is told with its holder, soon.
fn holders_are_told(spc: &Spc<'_>) -> Result<()> {
    spc.mount(&["-t", "tmpfs", "-o", "x-mount.mkdir", "x", "/mnt/busy"])?;
    let script = "cd /mnt/busy && echo ready && exec sleep 600";
    let mut holder = spc.host.spawn(&["sh", "-c", script])?;
    until("the mount is in use", || {
        Ok(holder.so_far()?.0 == b"ready\n")
    })?;
    let busy = || -> Result<bool> {
        let output = spc.exec(&["spc", "umount", "/mnt/busy"])?.code(32)?;
        ensure!(output.elapsed < Duration::from_secs(5), "{output}");
        Ok(output.error_text().contains("(sleep) works in /mnt/busy"))
    };
    until("the holder is named", busy)?;
    drop(holder);
    until("the mount is free", || {
        Ok(spc.exec(&["spc", "umount", "/mnt/busy"])?.success())
    })
}

/// Mounts by bindfs with these options, and returns its daemon.
fn mount_named(spc: &Spc<'_>, name: &str, options: &str) -> Result<String> {
    let options = format!("x-mount.mkdir,{options}");
    let source = ["/host/srv/source", &format!("/mnt/{name}")];
    spc.mount(&[&["-t", "fuse.bindfs", "-o", &options], &source[..]].concat())?;
    let daemons = format!("cat /sys/fs/cgroup/spc/mnt-{name}/cgroup.procs");
    Ok(spc.host.sh(&daemons)?.ok()?.text())
}

/// Kills a daemon, and waits until another mount is in place.
fn kill_and_wait(spc: &Spc<'_>, name: &str, daemon: &str) -> Result<()> {
    let target = format!("/mnt/{name}");
    let dead = spc.on(&target)?.pop().context("not mounted")?.id;
    spc.host.sh(&format!("kill -9 {daemon}"))?.ok()?;
    until("the mount is repaired", || {
        Ok(matches!(&spc.on(&target)?[..], [mount] if mount.id != dead))
    })
}

/// Checks that a user's process with a mount's mark and a file called `fuse` is not its daemon.
fn a_mark_is_not_enough(spc: &Spc<'_>) -> Result<()> {
    let daemon = mount_named(spc, "named", "ro")?;
    let read = format!("tr '\\0' '\\n' </proc/{daemon}/environ | sed -n s/^SPC_MOUNT=//p");
    let id = spc.host.sh(&read)?.ok()?.text();
    let marked = attack(spc, "mark", id.trim())?;
    kill_and_wait(spc, "named", &daemon)?;
    spc.umount("/mnt/named")?;
    let state = std::fs::read_to_string(format!("/proc/{}/stat", marked.pid()?))?;
    ensure!(
        !state.contains(") Z"),
        "another's process was killed: {state}"
    );
    Ok(())
}

/// Checks that the binds of other user namespaces are not touched, and that a bind that was shared
/// for itself does not become a peer of the host's mount.
fn binds_stay_apart(spc: &Spc<'_>) -> Result<()> {
    let daemon = mount_named(spc, "bound", "allow_other,x-spc.repair=containers")?;
    let before = spc.on("/mnt/bound")?.pop().context("not mounted")?;
    let hostile = attack(spc, "bind", "/mnt/bound")?;
    let script = "mkdir /tmp/own && exec unshare -m sh -c 'mount --make-rprivate /
        mount -o bind /mnt/bound /tmp/own && mount --make-shared /tmp/own
        echo ready; exec sleep 600'";
    let mut process = spc.host.spawn(&["sh", "-c", script])?;
    until("root's bind is there", || {
        Ok(process.so_far()?.0 == b"ready\n")
    })?;
    kill_and_wait(spc, "bound", &daemon)?;
    let after = spc.on("/mnt/bound")?.pop().context("not mounted")?;
    let table = |target: &str| {
        let find = format!("grep -hs ' {target} ' /proc/[0-9]*/mountinfo | sort -u");
        Ok::<_, anyhow::Error>(spc.host.sh(&find)?.ok()?.text())
    };
    let device = |mount: &lab::Mount| format!(" {} ", mount.device);
    until("root's bind is repaired", || {
        Ok(table("/tmp/own")?.contains(&device(&after)))
    })?;
    let (host, own) = (table("/mnt/bound")?, table("/tmp/own")?);
    let group = |table: &str| {
        let group = table
            .split_whitespace()
            .find(|word| word.starts_with("shared:"));
        group
            .map(str::to_owned)
            .with_context(|| format!("not shared: {table}"))
    };
    ensure!(group(&own)? != group(&host)?, "{own}\n{host}");
    let bound = table("/tmp/bound")?;
    ensure!(bound.contains(&device(&before)), "{before:?} {bound}");
    drop((hostile, process));
    spc.umount("/mnt/bound")?;
    Ok(())
}

/// Checks that the output of a helper is bounded, and that its last lines are told.
fn output_is_bounded(spc: &Spc<'_>) -> Result<()> {
    let noisy = "#!/bin/sh
        yes 'a line' | head -c 20000000 >&2
        stat -Lc %s /proc/self/fd/2 >/tmp/size
        echo 'the reason' >&2
        exit 1";
    spc.put("/usr/local/bin/noisy", noisy.as_bytes())?;
    let mount = [
        "spc",
        "mount",
        "-t",
        "fuse.noisy",
        "-o",
        "x-mount.mkdir,x-spc.container",
    ];
    let output = spc
        .exec(&[&mount[..], &["x", "/mnt/noisy"]].concat())?
        .code(32)?;
    ensure!(output.error_text().contains("the reason"), "{output}");
    let size: u64 = spc.sh("cat /tmp/size")?.ok()?.text().trim().parse()?;
    ensure!(size <= 1 << 20, "{size} bytes are kept in memory");
    Ok(())
}

/// Checks that a listener whose socket another one took receives reports again when that one ends.
fn the_survivor_listens(spc: &Spc<'_>) -> Result<()> {
    spc.sh("timeout 3 spc serve; true")?.ok()?;
    until("the first process logs what commands report", || {
        spc.mount(&["-t", "tmpfs", "-o", "x-mount.mkdir", "x", "/mnt/logged"])?;
        spc.umount("/mnt/logged")?;
        Ok(spc.log()?.contains("/mnt/logged"))
    })
}

/// Checks that a user's program called kubelet does not tell where drivers are installed.
fn kubelet_is_of_root(spc: &Spc<'_>) -> Result<()> {
    spc.host
        .sh("cp /opt/hostile /tmp/kubelet && chmod 755 /tmp/kubelet")?
        .ok()?;
    let _kubelet = attack(spc, "kubelet", "/tmp/evil")?;
    let installed = spc.exec(&["spc", "install", "--flexvolume"])?.ok()?;
    ensure!(!installed.text().contains("/tmp/evil"), "{installed}");
    spc.host.sh("! test -e /tmp/evil")?.ok()?;
    spc.exec(&["spc", "uninstall"])?.ok()?;
    Ok(())
}

/// Checks that nobody waits for the lock of a directory that any user can read and so lock.
fn locks_of_directories_do_not_matter(spc: &Spc<'_>) -> Result<()> {
    let settings = spc.host.sh("ls -d /var/lib/spc/roots/*/etc/spc")?;
    let settings = settings.ok()?.text();
    let _lock = attack(spc, "lock", &settings)?;
    // spc copies the file there.
    spc.sh("echo '# changed' >>/etc/spc/shim.conf")?.ok()?;
    mount_named(spc, "locked", "ro")?;
    let copy = format!("grep changed {settings}/shim.conf");
    spc.host.sh(&copy)?.ok()?;
    spc.umount("/mnt/locked").map(drop)
}

#[test]
fn a_hundred_mounts_are_as_fast_under_attack_as_in_peace() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        spc.remove()?;
        let docker = ["docker", "run", "-d", "--name", "spc"];
        let serve = [Base::Trixie.image(), "spc", "serve", "--metrics", ADDRESS];
        spc.host
            .run(&[&docker[..], &PRIVILEGED, &serve].concat())?
            .ok()?;
        spc.host.write(
            HOSTILE,
            &std::fs::read(program("hostile", Libc::Gnu, &["-static"])?)?,
        )?;
        let prepare =
            "chmod 755 /opt/hostile; chmod 1777 /tmp; chmod 666 /dev/fuse; mkdir -p /srv/source";
        spc.host.sh(prepare)?.ok()?;
        let port = ADDRESS.rsplit(':').next().unwrap_or_default();
        // Other tests on the machine may delay a step once. An attack that delays does so again.
        let mut attacks = None;
        let mut late = None;
        for round in 1..=3 {
            drop(attacks.take());
            let peace = lives(&spc, &format!("peace{round}x"), 20)?;
            attacks = Some(attack(&spc, "all", port)?);
            health_is_told(&spc)?;
            let war = lives(&spc, &format!("war{round}x"), 100)?;
            health_is_told(&spc)?;
            late = war.iter().find_map(|(step, time)| {
                let allowed = peace[step] + 1000;
                (*time > allowed).then(|| format!("{step}: {time} ms, allowed {allowed}"))
            });
            if late.is_none() {
                break;
            }
        }
        ensure!(late.is_none(), "{}", late.unwrap_or_default());
        holders_are_told(&spc).context("a busy mount")?;
        is_small(&spc)?;
        drop(attacks);

        a_mark_is_not_enough(&spc).context("a mark")?;
        binds_stay_apart(&spc).context("binds")?;
        locks_of_directories_do_not_matter(&spc).context("locks")?;
        output_is_bounded(&spc).context("output")?;
        the_survivor_listens(&spc).context("two listeners")?;
        kubelet_is_of_root(&spc).context("a kubelet")?;
        spc.is_clean()
    });
}

/// Checks that the bind of a container is repaired with the mount, beside this many attacks.
fn a_bind_is_repaired_beside(spc: &Spc<'_>, attacks: u32) -> Result<()> {
    let daemon = mount_named(spc, "bound", "allow_other,x-spc.repair=containers")?;
    let attacks = (0..attacks).map(|_| attack(spc, "all", "9"));
    let attacks = attacks.collect::<Result<Vec<_>>>()?;
    // A container that starts later.
    let script = "exec unshare -m sh -c 'mount --make-rprivate /
        mount -o bind /mnt/bound /tmp/own && echo ready; exec sleep 600'";
    let mut process = spc.host.spawn(&["sh", "-c", script])?;
    until(
        "the bind is there",
        || Ok(process.so_far()?.0 == b"ready\n"),
    )?;
    kill_and_wait(spc, "bound", &daemon)?;
    let after = spc.on("/mnt/bound")?.pop().context("not mounted")?;
    let device = format!(" {} ", after.device);
    let find = "grep -hs ' /tmp/own ' /proc/[0-9]*/mountinfo | sort -u";
    let repaired = until("the bind is repaired", || {
        Ok(spc.host.sh(find)?.text().contains(&device))
    });
    drop((attacks, process));
    spc.umount("/mnt/bound")?;
    repaired
}

#[test]
fn users_in_execve_do_not_leave_binds_of_containers_dead() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        let bytes = std::fs::read(program("hostile", Libc::Gnu, &["-static"])?)?;
        spc.host.write(HOSTILE, &bytes)?;
        let prepare = "chmod 755 /opt/hostile; chmod 1777 /tmp; chmod 666 /dev/fuse
            mkdir -p /srv/source /tmp/own";
        spc.host.sh(prepare)?.ok()?;
        a_bind_is_repaired_beside(&spc, 0).context("without an attack")?;
        a_bind_is_repaired_beside(&spc, 6).context("beside six processes")
    });
}
