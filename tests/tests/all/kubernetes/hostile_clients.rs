//! Clients of pods that their servers have taken over, servers of pods that are silent, and users of
//! the node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Base, Host, Libc, program};

use crate::kubernetes::csi::{Client, CsiVolume, MAPPED, serve, target};
use crate::kubernetes::hostile_servers;
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{PRIVILEGED, Spc, until, with_lab};

/// Puts a static program, compiled with these flags, in the place of s3fs.
pub(super) fn take_over(host: &Host<'_>, with: &str, flags: &[&str]) -> Result<()> {
    let path = host.run(&["realpath", "/var/lib/spc/current/usr/bin/s3fs"])?;
    let flags = [&["-static"], flags].concat();
    let bytes = std::fs::read(program(with, Libc::Gnu, &flags)?)?;
    host.write(path.ok()?.text(), &bytes)
}

/// Runs the container so that its processes can have 1,024 open files each.
pub(super) fn run_with_few_files(spc: &Spc<'_>) -> Result<()> {
    let limit = ["--ulimit", "nofile=1024:1024"];
    let arguments = [&limit[..], &PRIVILEGED].concat();
    spc.run(Base::Trixie, &arguments)?.ok().map(drop)
}

#[test]
fn a_volume_that_answers_all_but_statfs_keeps_one_process() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let driver = Client::register(&spc, MAPPED)?;
        take_over(host, "hostile_silent", &[])?;
        let volume = CsiVolume::new("csi-1", "fuse.s3fs", &[("source", "bucket")]);
        driver.publish_inline(&spc, &volume, "1-1")??;
        // Its server answers all but statfs(2) from now on.
        std::thread::sleep(Duration::from_secs(4));
        for _ in 0..4 {
            let condition = driver.stats(&volume, &target("1-1"))?.volume_condition;
            ensure!(condition.is_some_and(|condition| condition.abnormal));
        }
        // One process of spc waits for it, and no more.
        let waiting =
            "cat /proc/[0-9]*/task/*/wchan 2>/dev/null | grep -o request_wait_answer | wc -l";
        let waiting = host.sh(waiting)?.text();
        ensure!(waiting.trim() == "1", "{waiting} wait");
        // The one that waits makes the volume busy. Nevertheless the pod can be deleted, also one of
        // two pods with a volume of the cluster.
        let began = Instant::now();
        driver.unpublish(&volume, "1-1")?;
        let persistent = CsiVolume::new("pv-1", "fuse.s3fs", &[("source", "bucket")]);
        driver.stage(&spc, &persistent)??;
        for pod in ["2-1", "2-2"] {
            driver.publish(&spc, &persistent, pod)??;
        }
        std::thread::sleep(Duration::from_secs(4));
        for pod in ["2-1", "2-2"] {
            let condition = driver.stats(&persistent, &target(pod))?.volume_condition;
            ensure!(condition.is_some_and(|condition| condition.abnormal));
        }
        driver.unpublish(&persistent, "2-1")?;
        ensure!(spc.on(target("2-2"))?.len() == 1);
        driver.unpublish(&persistent, "2-2")?;
        driver.unstage(&persistent)?;
        ensure!(
            began.elapsed() < Duration::from_secs(40),
            "{:?}",
            began.elapsed()
        );
        ensure!(spc.on(target("1-1"))?.is_empty());
        until("nothing is left", || Ok(spc.is_clean().is_ok())).or_else(|_| spc.is_clean())
    });
}

#[test]
fn monitors_of_a_pod_cannot_have_rbd_write_files() {
    with_lab(|lab| {
        let ceph = lab.ceph()?;
        ceph.sh("ceph config set client log_file /host/srv/of-the-monitor; ceph config set client log_to_file true; ceph config set client debug_ms 1; ceph config set client admin_socket /host/srv/asok; ceph config dump")?;
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.run(&["mkdir", "-p", "/srv"])?.ok()?;
        let options = format!("id=disk,mon={}", ceph.address());
        let volume = Volume::new("ext4", &[("source", "rbd:rbd/none"), ("options", &options)])
            .secret("secret", &ceph.secret("disk")?);
        let refused = kubelet.set_up(&Pod::new("1-0", volume)).err();
        let refused = refused.context("monitors of a pod's choice")?.to_string();
        ensure!(refused.contains("are not for pods"), "{refused}");
        let seen = host.sh("ls -la /srv; head -c 1500 /srv/of-the-monitor")?;
        ensure!(!seen.text().contains("of-the-monitor"), "{seen}");
        Ok(())
    });
}

#[test]
fn a_taken_over_client_has_no_leases_and_shares_no_ports() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.write(
            "/opt/hold",
            &std::fs::read(program("hostile_hold", Libc::Gnu, &["-static"])?)?,
        )?;
        host.sh("chmod 755 /opt/hold; mkdir -p /srv/source /mnt/b")?
            .ok()?;
        let _service = host.spawn(&["/opt/hold", "serve"])?;
        take_over(host, "hostile_hold", &[])?;
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        kubelet.set_up(&pod)?;
        std::thread::sleep(Duration::from_secs(1));
        let asked = host.sh("/opt/hold ask")?.text();
        let began = Instant::now();
        let mounted = host
            .command(&[
                "docker",
                "exec",
                "spc",
                "spc",
                "mount",
                "-t",
                "fuse.bindfs",
                "/host/srv/source",
                "/mnt/b",
            ])?
            .limit(Duration::from_secs(200))
            .run()?;
        ensure!(mounted.success(), "{mounted}");
        let took = began.elapsed();
        ensure!(asked.trim() == "good 40 evil 0", "{asked}");
        ensure!(took.as_secs() < 10, "{took:?}");
        Ok(())
    });
}

#[test]
fn a_volfile_that_changes_at_run_time_reaches_no_files() {
    with_lab(|lab| {
        let server = hostile_servers::gluster(lab)?;
        let address = server.address().to_string();
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.sh("mkdir -p /srv; echo secret >/srv/secret-of-the-node")?
            .ok()?;
        let source = format!("{address}:/evil");
        let pod = Pod::new("1-0", Volume::new("glusterfs", &[("source", &source)]));
        kubelet.set_up(&pod)?;
        host.write(format!("{}/file", pod.directory()), b"x")?;
        // The server's answer changes; a restart of its management makes the client fetch again.
        for directory in ["/host", "/"] {
            hostile_servers::serve_own(&server, directory)?;
            server.sh("pkill -x glusterd; sleep 1; glusterd")?;
            std::thread::sleep(Duration::from_secs(5));
            let list = host
                .command(&["ls", "-la", &pod.directory()])?
                .limit(Duration::from_secs(20))
                .run()?;
            ensure!(list.text().contains(" file"), "{list}");
            // The client obeys its server, and cannot do what it says.
            let log = host.sh("cat /var/log/spc/glusterfs/*.log")?.text();
            ensure!(
                log.contains(&format!("{directory}: failed to set gfid")),
                "{log}"
            );
        }
        Ok(())
    });
}

#[test]
fn silent_servers_of_pods_leave_helper_slots() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let host = &spc.host;
        host.sh("mkdir -p /srv/source /mnt/b")?.ok()?;
        // Accepts connections, and says nothing.
        host.write(
            "/opt/hold",
            &std::fs::read(program("hostile_hold", Libc::Gnu, &["-static"])?)?,
        )?;
        host.sh("chmod 755 /opt/hold; for i in $(seq 100 140); do ip addr add 198.51.100.$i/32 dev lo; done")?.ok()?;
        let _silent = host.spawn(&["/opt/hold", "silent"])?;
        let mut calls = Vec::new();
        for number in 1..=40 {
            let json = format!(
                "{{\"kubernetes.io/fsType\":\"fuse.sshfs\",\"source\":\"root@198.51.100.{}:/\",\"options\":\"\",\"timeout\":\"3600\"}}",
                100 + number
            );
            let target = format!("/var/lib/kubelet/pods/1-{number}/volumes/spc~spc/data");
            host.run(&["mkdir", "-p", &target])?.ok()?;
            calls.push(host.spawn(&[
                "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/spc~spc/spc",
                "mount",
                &target,
                &json,
            ])?);
        }
        std::thread::sleep(Duration::from_secs(12));
        let mounted = host
            .command(&[
                "docker",
                "exec",
                "spc",
                "spc",
                "mount",
                "--timeout",
                "60",
                "-t",
                "fuse.bindfs",
                "/host/srv/source",
                "/mnt/b",
            ])?
            .limit(Duration::from_secs(200))
            .run()?;
        ensure!(mounted.success(), "{mounted}");
        Ok(())
    });
}

#[test]
fn many_namespaces_of_a_user_do_not_stop_a_repair() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        spc.remove()?;
        let host = &spc.host;
        host.write(
            "/opt/namespaces",
            &std::fs::read(program("hostile_namespaces", Libc::Gnu, &["-static"])?)?,
        )?;
        host.sh(
            "chmod 755 /opt/namespaces; mkdir -p /srv/source /tmp/own; echo x >/srv/source/file",
        )?
        .ok()?;
        let mut users = host.spawn(&["/opt/namespaces", "2000"])?;
        until("the namespaces are there", || {
            Ok(!users.so_far()?.0.is_empty())
        })?;
        run_with_few_files(&spc)?;
        eprintln!("{}", spc.sh("ulimit -n; ulimit -Hn")?.text());
        spc.mount(&[
            "-t",
            "fuse.bindfs",
            "-o",
            "x-mount.mkdir,allow_other,x-spc.repair=containers",
            "/host/srv/source",
            "/mnt/bound",
        ])?;
        let script = "exec unshare -m sh -c 'mount --make-rprivate /; mount -o bind /mnt/bound /tmp/own; echo ready; exec sleep 600'";
        let mut process = host.spawn(&["sh", "-c", script])?;
        until("root's bind is there", || {
            Ok(process.so_far()?.0 == b"ready\n")
        })?;
        let before = spc.on("/mnt/bound")?.pop().context("not mounted")?;
        host.sh("kill -9 $(cat /sys/fs/cgroup/spc/mnt-bound/cgroup.procs)")?
            .ok()?;
        until("the mount is repaired", || {
            Ok(matches!(&spc.on("/mnt/bound")?[..], [mount] if mount.id != before.id))
        })?;
        let after = spc.on("/mnt/bound")?.pop().context("not mounted")?;
        std::thread::sleep(Duration::from_secs(5));
        let table = host
            .sh("grep -hs ' /tmp/own ' /proc/[0-9]*/mountinfo | sort -u")?
            .text();
        ensure!(table.contains(&format!(" {} ", after.device)), "{table}");
        Ok(())
    });
}

#[test]
fn many_processes_of_a_pod_do_not_stop_repairs() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        spc.remove()?;
        let host = &spc.host;
        host.sh("mkdir -p /srv/source; echo x >/srv/source/file")?
            .ok()?;
        run_with_few_files(&spc)?;
        install(&spc)?;
        let kubelet = Kubelet::start(host)?;
        take_over(host, "hostile_forks", &[])?;
        let pod = Pod::new("1-0", Volume::new("fuse.s3fs", &[("source", "bucket")]));
        kubelet.set_up(&pod)?;
        spc.mount(&[
            "-t",
            "fuse.bindfs",
            "-o",
            "x-mount.mkdir,allow_other",
            "/host/srv/source",
            "/mnt/bound",
        ])?;
        std::thread::sleep(Duration::from_secs(6));
        let before = spc.on("/mnt/bound")?.pop().context("not mounted")?;
        host.sh("kill -9 $(cat /sys/fs/cgroup/spc/mnt-bound/cgroup.procs)")?
            .ok()?;
        let repaired = until("the mount is repaired", || {
            Ok(matches!(&spc.on("/mnt/bound")?[..], [mount] if mount.id != before.id))
        });
        let mounted = spc.exec(&[
            "spc",
            "mount",
            "-t",
            "fuse.bindfs",
            "-o",
            "x-mount.mkdir,allow_other",
            "/host/srv/source",
            "/mnt/other",
        ])?;
        let before = spc.on("/mnt/other")?.pop().context("not mounted")?;
        host.sh("kill -9 $(cat /sys/fs/cgroup/spc/mnt-other/cgroup.procs)")?
            .ok()?;
        let later = until("the other mount is repaired", || {
            Ok(matches!(&spc.on("/mnt/other")?[..], [mount] if mount.id != before.id))
        });
        std::thread::sleep(Duration::from_secs(3));
        let unmounted = spc.exec(&["spc", "umount", "/mnt/other"])?;
        let done = kubelet.call(&["unmount", &pod.directory()]);
        until("no process is left", || {
            Ok(host.run(&["pidof", "s3fs"])?.text().is_empty())
        })?;
        repaired?;
        later?;
        ensure!(mounted.success() && unmounted.success() && done.is_ok());
        Ok(())
    });
}

#[test]
fn silent_inline_volumes_do_not_delay_the_end_of_pods() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let driver = Client::register(&spc, MAPPED)?;
        host.write(
            "/opt/hold",
            &std::fs::read(program("hostile_hold", Libc::Gnu, &["-static"])?)?,
        )?;
        host.sh("chmod 755 /opt/hold; for i in $(seq 100 160); do ip addr add 198.51.100.$i/32 dev lo; done")?.ok()?;
        let _silent = host.spawn(&["/opt/hold", "silent"])?;
        take_over(host, "hostile_hold", &[])?;
        let volume = CsiVolume::new("csi-1", "fuse.s3fs", &[("source", "bucket")]);
        driver.publish_inline(&spc, &volume, "9-1")??;
        let took = std::thread::scope(|scope| -> Result<_> {
            for number in 0..40 {
                let spc = &spc;
                scope.spawn(move || -> Result<()> {
                    let client = Client::register(spc, MAPPED)?;
                    let source = format!("root@198.51.100.{}:/", 100 + number);
                    let silent = CsiVolume::new(
                        &format!("silent-{number}"),
                        "fuse.sshfs",
                        &[("source", &source), ("timeout", "3600")],
                    );
                    let _ = client.publish_inline(spc, &silent, &format!("8-{number}"))?;
                    Ok(())
                });
            }
            std::thread::sleep(Duration::from_secs(15));
            let began = Instant::now();
            driver.unpublish(&volume, "9-1")?;
            let took = began.elapsed();
            // The rest ends with the server.
            host.sh("kill $(pidof hold) $(pidof spc)")?;
            Ok(took)
        })?;
        ensure!(took.as_secs() < 15, "{took:?}");
        Ok(())
    });
}

#[test]
fn hanging_repairs_of_pods_leave_room_for_others() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        take_over(host, "hostile_flaky", &[])?;
        host.sh("mkdir -p /srv/source")?.ok()?;
        spc.mount(&[
            "-t",
            "fuse.bindfs",
            "-o",
            "x-mount.mkdir,allow_other",
            "/host/srv/source",
            "/mnt/bound",
        ])?;
        for number in 0..10 {
            kubelet.set_up(&Pod::new(
                &format!("1-{number}"),
                Volume::new("fuse.s3fs", &[("source", "bucket")]),
            ))?;
        }
        std::thread::sleep(Duration::from_secs(10));
        eprintln!(
            "{}",
            host.sh("pidof s3fs; ps | grep -c 'spc repair'")?.text()
        );
        let before = spc.on("/mnt/bound")?.pop().context("not mounted")?;
        host.sh("kill -9 $(cat /sys/fs/cgroup/spc/mnt-bound/cgroup.procs)")?
            .ok()?;
        let began = Instant::now();
        let repaired = until("the mount is repaired", || {
            Ok(matches!(&spc.on("/mnt/bound")?[..], [mount] if mount.id != before.id))
        });
        let took = began.elapsed();
        ensure!(took.as_secs() < 5, "{took:?}");
        repaired
    });
}
