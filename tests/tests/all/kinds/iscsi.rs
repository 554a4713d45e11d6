//! iSCSI through the container, on a minimal host that is a virtual machine, from the kernel's own
//! server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Lio, Output};

use crate::support::images::{MIB, NOT_BLANK, ext4, ext4_with, on, xfs};
use crate::support::{VmSpc, until, with_lab};

/// Runs a test's body with the lab and the iSCSI server.
fn with_lio(body: impl FnOnce(&'static Lab, &'static Lio<'static>) -> Result<()>) {
    with_lab(|lab| match lab::lio() {
        Some(lio) => body(lab, lio),
        None => Ok(()),
    });
}

/// The container, and the target that it mounts from.
struct Client {
    spc: VmSpc<'static>,
    iqn: String,
    server: String,
}

impl Client {
    fn new(lab: &'static Lab, lio: &Lio<'_>, name: &str, disks: &[&str]) -> Result<Self> {
        let iqn = format!("iqn.2026-01.org.example:{name}");
        lio.target(&iqn, disks)?;
        let spc = VmSpc::privileged(lab)?;
        Ok(Self {
            spc,
            iqn,
            server: lio.vm().address().to_string(),
        })
    }

    /// Hides the host's devices from the container.
    fn hide_devices(&self) -> Result<()> {
        let hide = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ln -s /proc/self/fd /dev/fd";
        self.spc.sh(hide)?.ok()?;
        Ok(())
    }

    fn source(&self, lun: u16) -> String {
        format!("iscsi:{}/{}/{lun}", self.server, self.iqn)
    }

    /// Runs `spc mount ARGUMENTS TARGET`, and creates TARGET first.
    fn mount(&self, arguments: &[&str], target: &str) -> Result<Output> {
        self.spc.host.run(&["mkdir", "-p", target])?.ok()?;
        self.spc
            .exec(&[&["spc", "mount"], arguments, &[target]].concat())
    }

    /// Numbers of iSCSI sessions and of SCSI disks on the host.
    fn attached(&self) -> Result<(usize, usize)> {
        let count = "ls /sys/class/iscsi_session 2>/dev/null | wc -l; ls -d /sys/class/block/sd* 2>/dev/null | wc -l";
        let text = self.spc.host.sh(count)?.text();
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || numbers.next().context("no number")?.context("no number");
        Ok((next()?, next()?))
    }

    /// Checks that no trace is left on the host, in the container or on the server.
    fn is_clean(&self, lio: &Lio<'_>) -> Result<()> {
        ensure!(self.attached()? == (0, 0), "{:?}", self.attached()?);
        let left = self.spc.host.sh("ls -A /run/spc/devices")?.text();
        ensure!(left.is_empty(), "left attachments: {left}");
        let records = "find /var/lib/iscsi /etc/iscsi -type f | grep -E 'nodes|send_targets'";
        let left = self.spc.sh(records)?.text();
        ensure!(left.is_empty(), "left records: {left}");
        // The first process of the machine reaps once per second.
        let daemons =
            "for p in $(pidof iscsid); do grep -q '^State:.[^Z]' /proc/$p/status && echo $p; done";
        let left = self.spc.host.sh(daemons)?.text();
        ensure!(left.is_empty(), "iscsid still runs: {left}");
        let sessions = lio.sessions(&self.iqn)?;
        ensure!(sessions.is_empty(), "the server has sessions: {sessions:?}");
        self.spc.is_clean()
    }
}

#[test]
fn luns_of_one_target_share_a_session_and_the_last_user_ends_it() {
    with_lio(|lab, lio| {
        lio.disk("first-0", 64 * MIB, ext4)?;
        lio.disk("first-1", 320 * MIB, xfs)?;
        let client = Client::new(lab, lio, "first", &["first-0", "first-1"])?;
        let (spc, host) = (&client.spc, &client.spc.host);

        let zero = client.source(0);
        let one = client.source(1);
        client
            .mount(&["-t", "ext4", "-r", &zero], "/mnt/zero")?
            .ok()?;
        ensure!(client.attached()? == (1, 1), "{:?}", client.attached()?);
        // spc reads the file system type from the device.
        client.mount(&[&one], "/mnt/one")?.ok()?;
        ensure!(client.attached()? == (1, 2), "{:?}", client.attached()?);
        ensure!(lio.sessions(&client.iqn)?.len() == 1);
        let listed = spc.exec(&["iscsiadm", "-m", "session"])?.ok()?.text();
        ensure!(listed.lines().count() == 1, "{listed}");

        ensure!(host.read("/mnt/zero/greeting")? == b"from the server");
        let refused = host.sh("echo x > /mnt/zero/file")?;
        ensure!(refused.error_text().contains("Read-only"), "{refused}");
        host.write("/mnt/one/file", b"written on the host")?;
        let record = spc.record("/mnt/one")?;
        ensure!(
            record["state"] == "ok" && record["source"] == *one && record["route"] == "direct",
            "{record}"
        );

        let explained = spc.exec(&["spc", "explain", &one, "/mnt/one"])?.ok()?;
        eprintln!("{}", explained.text());
        eprintln!("{}", spc.exec(&["spc", "ls"])?.ok()?.text());

        // A second user of the same disk, and the same request once more.
        client.mount(&["-t", "xfs", &one], "/mnt/two")?.ok()?;
        client.mount(&["-t", "xfs", &one], "/mnt/two")?.ok()?;
        ensure!(host.read("/mnt/two/file")? == b"written on the host");
        ensure!(client.attached()? == (1, 2), "{:?}", client.attached()?);
        ensure!(lio.sessions(&client.iqn)?.len() == 1);

        spc.umount("/mnt/zero")?;
        ensure!(client.attached()? == (1, 1), "{:?}", client.attached()?);
        spc.umount("/mnt/one")?;
        ensure!(client.attached()? == (1, 1), "{:?}", client.attached()?);
        host.write("/mnt/two/last", b"words of the last user")?;
        ensure!(lio.sessions(&client.iqn)?.len() == 1);

        // kubelet unmounts like this.
        host.sh("umount /mnt/two")?.ok()?;
        until("the session has ended", || Ok(client.attached()? == (0, 0)))?;
        until("the session and the disk are gone", || {
            Ok(client.is_clean(lio).is_ok())
        })?;
        client.is_clean(lio)?;
        ensure!(lio.holds("first-1", "words of the last user")?);
        // The same again, but `spc umount` removes the last user.
        client.mount(&["-t", "xfs", &one], "/mnt/one")?.ok()?;
        ensure!(host.read("/mnt/one/last")? == b"words of the last user");
        spc.umount("/mnt/one")?;
        client.is_clean(lio)
    });
}

#[test]
fn a_disk_is_detached_after_its_last_user() {
    with_lio(|lab, lio| {
        lio.disk("lazy-0", 64 * MIB, ext4)?;
        let client = Client::new(lab, lio, "lazy", &["lazy-0"])?;
        let (spc, host) = (&client.spc, &client.spc.host);
        let source = client.source(0);
        client.mount(&["-t", "ext4", &source], "/mnt/data")?.ok()?;
        host.sh("sleep 1000 </mnt/data/greeting >/dev/null 2>&1 &")?
            .ok()?;
        let busy = spc.exec(&["spc", "umount", "/mnt/data"])?.code(32)?;
        ensure!(busy.error_text().contains("busy"), "{busy}");
        ensure!(client.attached()? == (1, 1));
        spc.exec(&["spc", "umount", "-l", "/mnt/data"])?.ok()?;
        ensure!(
            client.attached()? == (1, 1),
            "unmounted although a process reads from it"
        );
        host.sh("cat /proc/$(pidof sleep)/fd/0")?.ok()?;
        // The disk can be mounted again meanwhile: same file system, same session.
        client.mount(&["-t", "ext4", &source], "/mnt/data")?.ok()?;
        ensure!(client.attached()? == (1, 1));
        spc.umount("/mnt/data")?;
        ensure!(
            client.attached()? == (1, 1),
            "unmounted although a process reads from it"
        );
        host.sh("kill $(pidof sleep)")?.ok()?;
        until("the disk is detached", || Ok(client.is_clean(lio).is_ok()))?;
        client.is_clean(lio)?;

        // A session that an administrator opened stays.
        let adm = |more: &str| {
            let portal = format!("{}:3260", client.server);
            spc.sh(&format!(
                "iscsiadm -m node -T {} -p {portal} {more}",
                client.iqn
            ))
        };
        spc.sh("iscsid")?.ok()?;
        adm("-o new")?.ok()?;
        adm("--login")?.ok()?;
        until("the disk is attached", || Ok(client.attached()? == (1, 1)))?;
        client.mount(&["-t", "ext4", &source], "/mnt/data")?.ok()?;
        ensure!(client.attached()? == (1, 1));
        spc.umount("/mnt/data")?;
        ensure!(
            client.attached()? == (1, 1),
            "the administrator's session was closed"
        );
        ensure!(lio.sessions(&client.iqn)?.len() == 1);
        let left = spc.host.sh("ls -A /run/spc/devices")?.text();
        ensure!(left.is_empty(), "{left}");
        Ok(())
    });
}

#[test]
fn the_next_command_rolls_back_a_killed_mount() {
    with_lio(|lab, lio| {
        lio.disk("killed-0", 64 * MIB, ext4)?;
        let client = Client::new(lab, lio, "killed", &["killed-0"])?;
        let (spc, host) = (&client.spc, &client.spc.host);
        let source = client.source(0);
        let real = spc.sh("mv /usr/sbin/e2fsck /usr/sbin/e2fsck.real")?;
        real.ok()?;
        spc.put("/usr/sbin/e2fsck", b"#!/bin/sh\nexec sleep 1000\n")?;
        host.run(&["mkdir", "-p", "/mnt/data"])?.ok()?;
        host.sh(&format!(
            "runc exec spc spc mount -t ext4 {source} /mnt/data >/tmp/out 2>&1 & echo"
        ))?
        .ok()?;
        until("fsck is running", || {
            Ok(client.attached()? == (1, 1) && !host.sh("pidof sleep")?.text().is_empty())
        })?;
        // `spc serve` must not be the one that cleans up.
        let serve = spc.pid()?;
        spc.stop_serve()?;
        host.sh(
            "for p in $(pidof spc); do grep -qz ^mount /proc/$p/cmdline && kill -9 $p; done; true",
        )?
        .ok()?;
        until("fsck has ended", || {
            Ok(host.sh("pidof sleep")?.text().is_empty())
        })?;
        ensure!(
            client.attached()? == (1, 1),
            "the killed mount left nothing to clear"
        );
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;
        host.sh(&format!("kill -CONT {serve}"))?.ok()?;
        spc.sh("mv /usr/sbin/e2fsck.real /usr/sbin/e2fsck")?.ok()?;

        // A step between attaching and mounting that fails leaves nothing behind.
        let wrong = ["-t", "xfs", &source, "/mnt/data"];
        spc.refused_mount(&wrong, 32, &["it holds ext4"])?;
        client.is_clean(lio)?;
        let wrong = [
            "spc",
            "mount",
            "-t",
            "ext4",
            "-o",
            "no-such-option",
            &source,
        ];
        spc.refused(
            &[&wrong[..], &["/mnt/data"]].concat(),
            32,
            &["no-such-option"],
        )?;
        client.is_clean(lio)?;
        let wrong = client.source(7);
        let wrong = ["-t", "ext4", &wrong, "/mnt/data"];
        spc.refused_mount(&wrong, 32, &["no such disk"])?;
        client.is_clean(lio)?;
        let wrong = format!("iscsi:{}/iqn.2026-01.org.example:none/0", client.server);
        let wrong = ["-t", "ext4", &wrong, "/mnt/data"];
        spc.refused_mount(&wrong, 32, &["iscsiadm: exit status"])?;
        client.is_clean(lio)
    });
}

#[test]
fn one_of_two_portals_is_enough() {
    with_lio(|lab, lio| {
        lio.disk("ways-0", 64 * MIB, ext4)?;
        let client = Client::new(lab, lio, "ways", &["ways-0"])?;
        client.hide_devices()?;
        let iqn = &client.iqn;
        let (spc, host, server) = (&client.spc, &client.spc.host, &client.server);
        lio.tell(&format!("/iscsi/{iqn}/tpg1/portals create {server} 3261\n"))?;
        let both = format!("iscsi:{server},{server}:3261/{iqn}/0");
        let mounted = client.mount(&["-t", "ext4", &both], "/mnt/data")?.ok()?;
        ensure!(client.attached()? == (2, 2), "{mounted}");
        ensure!(lio.sessions(iqn)?.len() == 2, "{:?}", lio.sessions(iqn)?);
        // Two device names of one disk are never both mounted.
        client.mount(&["-t", "ext4", &both], "/mnt/more")?.ok()?;
        let disk = |target: &str| anyhow::Ok(spc.on(target)?[0].source.clone());
        ensure!(disk("/mnt/data")? == disk("/mnt/more")?);
        host.write("/mnt/data/file", b"by either way")?;
        ensure!(host.read("/mnt/more/file")? == b"by either way");
        spc.exec(&["spc", "umount", "/mnt/more", "/mnt/data"])?
            .ok()?;
        client.is_clean(lio)?;

        // The first portal refuses connections; the second address does not exist.
        let dead = format!("iscsi:{server}:3999,192.0.2.250,{server}:3261/{iqn}/0");
        let words = [
            "runc",
            "exec",
            "spc",
            "spc",
            "mount",
            "-t",
            "ext4",
            &dead,
            "/mnt/data",
        ];
        let limit = Duration::from_secs(110);
        let mounted = host.command(&words).limit(limit).run()?.ok()?;
        let error = mounted.error_text();
        ensure!(
            error.contains("is attached without")
                && error.contains(":3999")
                && error.contains("192.0.2.250"),
            "{mounted}"
        );
        eprintln!("with two dead portals: {:.1?}", mounted.elapsed);
        ensure!(client.attached()? == (1, 1), "{:?}", client.attached()?);
        ensure!(host.read("/mnt/data/file")? == b"by either way");
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;

        let dead = format!("iscsi:{server}:3999/{iqn}/0");
        let dead = ["-t", "ext4", &dead, "/mnt/data"];
        spc.refused_mount(&dead, 32, &[":3999", "connection timed out"])?;
        client.is_clean(lio)
    });
}

#[test]
fn a_lun_that_became_another_volume_is_refused() {
    with_lio(|lab, lio| {
        lio.disk("reused-0", 64 * MIB, ext4)?;
        lio.disk("reused-other", 64 * MIB, |path| {
            ext4_with(path, "from another")
        })?;
        let client = Client::new(lab, lio, "reused", &["reused-0"])?;
        let iqn = &client.iqn;
        let (spc, host) = (&client.spc, &client.spc.host);
        let source = client.source(0);
        // The mount is read-only: the client cannot notice the change, and writes would go to the
        // other volume.
        client
            .mount(&["-t", "ext4", "-r", &source], "/mnt/data")?
            .ok()?;
        lio.tell(&format!(
            "/backstores/fileio create reused-other /srv/reused-other write_back=false\n\
             /iscsi/{iqn}/tpg1/luns delete lun0\n\
             /iscsi/{iqn}/tpg1/luns create /backstores/fileio/reused-other 0\n"
        ))?;
        host.run(&["mkdir", "/mnt/more"])?.ok()?;
        let more = ["-t", "ext4", &source, "/mnt/more"];
        spc.refused_mount(&more, 32, &["another volume is behind it now"])?;
        // After the last unmount, the kernel removes the disk.
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;
        client.mount(&["-t", "ext4", &source], "/mnt/data")?.ok()?;
        ensure!(host.read("/mnt/data/greeting")? == b"from another");
        spc.umount("/mnt/data")?;
        client.is_clean(lio)
    });
}

#[test]
fn passwords_are_used_by_iscsi_and_never_shown() {
    with_lio(|lab, lio| {
        lio.disk("chap-0", 64 * MIB, ext4)?;
        let client = Client::new(lab, lio, "chap", &["chap-0"])?;
        let iqn = &client.iqn;
        let (spc, host) = (&client.spc, &client.spc.host);
        lio.tell(&format!(
            "/iscsi/{iqn}/tpg1 set attribute authentication=1\n/iscsi/{iqn}/tpg1 set auth userid=me password=sesame-123456\n"
        ))?;
        let source = client.source(0);
        host.run(&["mkdir", "/mnt/data"])?.ok()?;
        let with = |options: &'static str| -> Vec<String> {
            let words = [
                "spc",
                "mount",
                "-t",
                "ext4",
                "-o",
                options,
                &source,
                "/mnt/data",
            ];
            words.map(str::to_owned).to_vec()
        };
        let refused = |words: &[String], expected: &[&str]| -> Result<()> {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = spc.refused(&words, 32, expected)?;
            ensure!(!output.error_text().contains("123456"), "{output}");
            client.is_clean(lio)
        };
        refused(&with("ro"), &["authorization failure"])?;
        refused(
            &with("user=me,password=open-123456"),
            &["authorization failure", "hint: check name and password"],
        )?;
        spc.put("/run/password", b"sesame-123456\n")?;
        let mount = [
            "-t",
            "ext4",
            "-o",
            "user=me",
            "--secret",
            "password=file:/run/password",
            &source,
        ];
        client.mount(&mount, "/mnt/data")?.ok()?;
        let kept =
            "find /var/lib/iscsi /etc/iscsi -type f -exec grep -l 12345[6] {} + | xargs stat -c %a";
        ensure!(spc.sh(kept)?.text() == "600", "{}", spc.sh(kept)?);
        let seen = "cat /proc/[0-9]*/cmdline /run/spc/mounts/*.json /run/spc/devices/*.json | grep -ac 12345[6]";
        ensure!(host.sh(seen)?.text() == "0", "{}", host.sh(seen)?);
        ensure!(host.read("/mnt/data/greeting")? == b"from the server");
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;

        // The server also proves itself with a password.
        lio.tell(&format!(
            "/iscsi/{iqn}/tpg1 set auth mutual_userid=they mutual_password=answer-123456\n"
        ))?;
        refused(
            &with("user=me,password=sesame-123456,user_in=they,password_in=other-123456"),
            &["iscsiadm: exit status"],
        )?;
        let mutual = "user=me,password=sesame-123456,user_in=they,password_in=answer-123456";
        client
            .mount(&["-t", "ext4", "-o", mutual, &source], "/mnt/data")?
            .ok()?;
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;

        // Discovery needs a password too.
        lio.tell("/iscsi set discovery_auth enable=1 userid=asker password=tell-me-123456\n")?;
        refused(
            &with("discovery,user=me,password=sesame-123456"),
            &["cannot attach"],
        )?;
        refused(
            &with(
                "discovery.user=asker,discovery.password=nothing-123456,user=me,password=sesame-123456",
            ),
            &["cannot attach"],
        )?;
        let discovery =
            "discovery.user=asker,discovery.password=tell-me-123456,user=me,password=sesame-123456";
        client
            .mount(&["-t", "ext4", "-o", discovery, &source], "/mnt/data")?
            .ok()?;
        ensure!(host.read("/mnt/data/greeting")? == b"from the server");
        spc.umount("/mnt/data")?;
        client.is_clean(lio)?;
        let other = source.replace("org.example:chap", "org.example:other");
        let other = ["-t", "ext4", "-o", discovery, &other, "/mnt/data"];
        let output = spc.refused_mount(&other, 32, &["the portal offers other targets", iqn])?;
        ensure!(!output.error_text().contains("123456"), "{output}");
        lio.tell("/iscsi set discovery_auth enable=0\n")
    });
}

#[test]
fn mkfs_runs_only_on_blank_disks() {
    with_lio(|lab, lio| {
        let mut disks = vec!["blank", "blank-too"];
        for name in &disks {
            lio.disk(name, 320 * MIB, |_| Ok(()))?;
        }
        for (name, make, _) in NOT_BLANK {
            lio.disk(name, 64 * MIB, make)?;
            disks.push(name);
        }
        let client = Client::new(lab, lio, "blank", &disks)?;
        let (spc, host) = (&client.spc, &client.spc.host);
        host.run(&["mkdir", "/mnt/data"])?.ok()?;
        // Last write time of each image. Reading whole images takes minutes on an emulated machine.
        let stat = format!("cd /srv && stat -c '%n %y %b' {}", disks.join(" "));
        let sums = || anyhow::Ok(lio.vm().sh(&stat)?.ok()?.text());
        let before = sums()?;
        let mkfs = "x-spc.mkfs";
        for (lun, (name, _, expected)) in (2..).zip(NOT_BLANK) {
            let source = client.source(lun);
            let fs_type = if expected.ends_with("ext4") {
                "xfs"
            } else {
                "ext4"
            };
            let mount = ["-t", fs_type, "-o", mkfs, &source, "/mnt/data"];
            spc.refused_mount(&mount, 32, &[expected]).context(name)?;
        }
        // No file system is made without the option, without a type, or for a read-only mount.
        let source = client.source(0);
        let plain = ["-t", "ext4", &source, "/mnt/data"];
        spc.refused_mount(&plain, 32, &["no file system is on", mkfs])?;
        let untyped = ["-o", mkfs, &source, "/mnt/data"];
        spc.refused_mount(&untyped, 1, &["type"])?;
        let read_only = ["-t", "ext4", "-r", "-o", mkfs, &source, "/mnt/data"];
        spc.refused_mount(&read_only, 1, &["read-only"])?;
        client.is_clean(lio)?;
        ensure!(sums()? == before, "a disk was written to");

        for (lun, fs_type) in [(0, "ext4"), (1, "xfs")] {
            let source = client.source(lun);
            let mount = ["-t", fs_type, "-o", mkfs, &source];
            client.mount(&mount, "/mnt/data")?.ok()?;
            host.write("/mnt/data/file", b"on a new file system")?;
            ensure!(spc.on("/mnt/data")?[0].fstype == fs_type);
            spc.umount("/mnt/data")?;
            // The option stays in the request and has no further effect.
            client.mount(&mount, "/mnt/data")?.ok()?;
            ensure!(host.read("/mnt/data/file")? == b"on a new file system");
            spc.umount("/mnt/data")?;
        }
        client.is_clean(lio)
    });
}

#[test]
fn a_damaged_file_system_is_repaired_or_not_mounted() {
    with_lio(|lab, lio| {
        let debugfs = |path: &Path, request: &str| on(path, &["debugfs", "-w", "-R", request]);
        lio.disk("dirty", 64 * MIB, |path| {
            ext4(path)?;
            debugfs(path, "set_super_value state 0")
        })?;
        lio.disk("damaged", 64 * MIB, |path| {
            ext4(path)?;
            debugfs(path, "clri <2>")?;
            debugfs(path, "set_super_value state 2")
        })?;
        let client = Client::new(lab, lio, "damaged", &["dirty", "damaged"])?;
        client.hide_devices()?;
        let (spc, host) = (&client.spc, &client.spc.host);
        client
            .mount(&["-t", "ext4", &client.source(0)], "/mnt/data")?
            .ok()?;
        ensure!(host.read("/mnt/data/greeting")? == b"from the server");
        spc.umount("/mnt/data")?;
        let source = client.source(1);
        let mount = ["-t", "ext4", "-o", "x-spc.mkfs", &source, "/mnt/data"];
        spc.refused_mount(&mount, 32, &["is damaged", "e2fsck: exit status 4"])?;
        client.is_clean(lio)
    });
}
