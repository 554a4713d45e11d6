//! The CSI drivers: the contract of each call, with real servers.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::Base;
use tonic::Code;

use crate::kubernetes::csi::{
    Client, CsiVolume, DISK, MAPPED, Mode, SHARE, is_clean, memory, proto, record, refused, serve,
    target,
};
use crate::support::{MINIMAL, Spc, entries, until, with_gluster, with_lab};

#[test]
fn two_pods_share_one_mount_of_a_persistent_volume() {
    with_gluster(|lab, cluster| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let node = cluster.nodes()[0].host();
        let volume = CsiVolume::new(
            "pv-1",
            "glusterfs",
            &[("servers", &node.address().to_string()), ("path", "vol")],
        );
        let before = spc.host.mountinfo()?.len();
        driver.stage(&spc, &volume)??;
        let staging = volume.staging(SHARE);
        ensure!(spc.on(&staging)?.len() == 1);
        let all = entries(&spc.host)?;
        for pod in ["1-1", "1-2"] {
            driver.publish(&spc, &volume, pod)??;
            let on = spc.on(target(pod))?;
            ensure!(on.len() == 1 && on[0].fstype == "fuse.glusterfs", "{on:?}");
        }
        ensure!(spc.host.mountinfo()?.len() == before + 3);
        until("no other mount table has copies", || {
            Ok(entries(&spc.host)? == all + 2)
        })?;
        let stage = record(&spc, &staging)?;
        ensure!(
            stage["csi"]["id"] == "pv-1" && stage["csi"]["role"] == "stage",
            "{stage}"
        );
        let publish = record(&spc, &target("1-2"))?;
        ensure!(
            publish["csi"]["role"] == "publish" && publish["csi"]["staged_at"] == *staging,
            "{publish}"
        );
        spc.host
            .write(format!("{}/shared", target("1-1")), b"by the first pod")?;
        let seen = spc.host.read(format!("{}/shared", target("1-2")))?;
        ensure!(seen == b"by the first pod");
        let brick = cluster.nodes()[0].brick("vol").join("shared");
        ensure!(node.read(brick)? == b"by the first pod");
        for pod in ["1-1", "1-2"] {
            driver.unpublish(&volume, pod)?;
            ensure!(!spc.host.run(&["test", "-e", &target(pod)])?.success());
        }
        driver.unstage(&volume)?;
        ensure!(spc.host.mountinfo()?.len() == before);
        is_clean(&spc)
    });
}

#[test]
fn requests_are_checked_in_the_order_of_the_standard() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let info = driver.identity(|mut identity| async move {
            identity
                .get_plugin_info(proto::GetPluginInfoRequest {})
                .await
        })?;
        ensure!(info.name == SHARE && !info.vendor_version.is_empty());
        let probe = driver
            .identity(|mut identity| async move { identity.probe(proto::ProbeRequest {}).await })?;
        ensure!(probe.ready == Some(true));
        let invalid = |request: proto::NodeStageVolumeRequest, words: &str| {
            refused(driver.stage_as(request), Code::InvalidArgument, words)
        };
        let good = driver.stage_request(&memory("a"));
        let nothing = proto::NodeStageVolumeRequest::default();
        invalid(nothing.clone(), "volume_id")?;
        let with_id = proto::NodeStageVolumeRequest {
            volume_id: "a".into(),
            ..nothing
        };
        invalid(with_id.clone(), "staging_target_path")?;
        let with_path = proto::NodeStageVolumeRequest {
            staging_target_path: good.staging_target_path.clone(),
            ..with_id
        };
        invalid(with_path, "volume_capability")?;
        let mut bad = good.clone();
        bad.volume_id = "x".repeat(129);
        invalid(bad, "volume_id")?;
        let mut bad = good.clone();
        bad.volume_context.insert("x".into(), "y".repeat(4096));
        invalid(bad, "volume_context")?;
        let mut bad = good.clone();
        bad.volume_context.insert("vers".into(), "3".into());
        invalid(bad, "unknown option: vers")?;
        let mut bad = good.clone();
        bad.staging_target_path = "/var/lib/kubelet/../x".into();
        invalid(bad, "bad target")?;
        let mut bad = memory("a");
        bad.mode = Some(Mode::Unknown);
        invalid(driver.stage_request(&bad), "access_mode")?;
        let bad = CsiVolume::new("a", "cifs", &[("source", "//192.0.2.1/s")]);
        invalid(driver.stage_request(&bad), MAPPED)?;
        let mut block = good;
        if let Some(capability) = &mut block.volume_capability {
            let block = proto::volume_capability::BlockVolume {};
            capability.access_type = Some(proto::volume_capability::AccessType::Block(block));
        }
        refused(driver.stage_as(block), Code::FailedPrecondition, "Block")?;

        let nothing = proto::NodePublishVolumeRequest::default();
        refused(
            driver.publish_as(nothing.clone()),
            Code::InvalidArgument,
            "volume_id",
        )?;
        let with_id = proto::NodePublishVolumeRequest {
            volume_id: "a".into(),
            ..nothing
        };
        refused(
            driver.publish_as(with_id),
            Code::InvalidArgument,
            "target_path",
        )?;
        let mut unstaged = driver.publish_request(&memory("a"), "1-1");
        refused(
            driver.publish_as(unstaged.clone()),
            Code::FailedPrecondition,
            "",
        )?;
        unstaged.staging_target_path.clear();
        refused(
            driver.publish_as(unstaged),
            Code::FailedPrecondition,
            "staging_target_path",
        )?;

        let disk = Client::register(&spc, DISK)?;
        let volume = CsiVolume::new("d", "ext4", &[("source", "/dev/sdz")]);
        refused(
            disk.stage(&spc, &volume)?,
            Code::FailedPrecondition,
            "several nodes",
        )?;
        let mapped = Client::register(&spc, MAPPED)?;
        for (driver, capabilities) in [
            (&driver, &[1, 2, 4, 5][..]),
            (&mapped, &[1, 2, 4, 5, 6]),
            (&disk, &[1, 2, 4, 5, 3]),
        ] {
            ensure!(driver.capabilities()? == capabilities, "{}", driver.driver);
        }
        // What is not advertised is not there.
        refused(
            driver.expand(&memory("a"), "/mnt", 1).map(drop),
            Code::Unimplemented,
            "",
        )?;
        let mut grouped = memory("a");
        grouped.group = "2000".into();
        refused(
            driver.stage(&spc, &grouped)?,
            Code::FailedPrecondition,
            "volume_mount_group",
        )?;
        refused(
            disk.expand(&memory("a"), "/mnt", 1).map(drop),
            Code::NotFound,
            "",
        )?;
        // Unknown volumes are gone.
        driver.unpublish(&memory("a"), "9-9")?;
        driver.unstage(&memory("a"))?;
        is_clean(&spc)
    });
}

#[test]
fn a_repeated_call_changes_nothing_and_another_request_is_refused() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        let volume = memory("pv-1");
        let before = spc.host.mountinfo()?.len();
        for _ in 0..3 {
            driver.stage(&spc, &volume)??;
        }
        let mut other = volume.clone();
        other.mount_options = vec!["noexec".into()];
        refused(driver.stage(&spc, &other)?, Code::AlreadyExists, "")?;
        let other = volume.clone().mode(Mode::SingleNodeWriter);
        refused(driver.stage(&spc, &other)?, Code::AlreadyExists, "")?;
        let mut stolen = driver.stage_request(&volume);
        stolen.volume_id = "pv-2".into();
        refused(driver.stage_as(stolen), Code::AlreadyExists, "")?;

        for _ in 0..3 {
            driver.publish(&spc, &volume, "1-1")??;
        }
        let mut read_only = volume.clone();
        read_only.read_only = true;
        refused(
            driver.publish(&spc, &read_only, "1-1")?,
            Code::AlreadyExists,
            "",
        )?;
        driver.publish(&spc, &read_only, "1-2")??;
        spc.host.write(format!("{}/file", target("1-1")), b"data")?;
        let refused_write = spc.host.sh(&format!("echo x >{}/file", target("1-2")))?;
        ensure!(
            refused_write.error_text().contains("Read-only"),
            "{refused_write}"
        );
        ensure!(spc.host.read(format!("{}/file", target("1-2")))? == b"data");
        ensure!(spc.host.mountinfo()?.len() == before + 3);

        // An unpublish for another volume, or for one of another driver, leaves this one.
        let disks = Client::register(&spc, DISK)?;
        for (driver, other) in [(&driver, "pv-2"), (&disks, "pv-1")] {
            refused(
                driver.unpublish(&memory(other), "1-1"),
                Code::InvalidArgument,
                "another volume",
            )?;
        }
        for _ in 0..2 {
            driver.unpublish(&volume, "1-1")?;
            driver.unpublish(&volume, "1-2")?;
        }
        for _ in 0..2 {
            driver.unstage(&volume)?;
        }
        ensure!(spc.host.mountinfo()?.len() == before);

        let single = memory("pv-3").mode(Mode::SingleNodeSingleWriter);
        driver.stage(&spc, &single)??;
        driver.publish(&spc, &single, "1-1")??;
        driver.publish(&spc, &single, "1-1")??;
        refused(
            driver.publish(&spc, &single, "1-2")?,
            Code::FailedPrecondition,
            "another pod",
        )?;
        ensure!(!spc.host.run(&["test", "-e", &target("1-2")])?.success());
        driver.unpublish(&single, "1-1")?;
        driver.publish(&spc, &single, "1-2")??;
        driver.unpublish(&single, "1-2")?;
        driver.unstage(&single)?;
        is_clean(&spc)
    });
}

#[test]
fn modes_that_only_read_mount_read_only() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let driver = Client::register(&spc, SHARE)?;
        for (id, mode) in [
            ("pv-1", Mode::SingleNodeReaderOnly),
            ("pv-2", Mode::MultiNodeReaderOnly),
        ] {
            let volume = memory(id).mode(mode);
            driver.stage(&spc, &volume)??;
            driver.publish(&spc, &volume, id)??;
            for directory in [volume.staging(SHARE), target(id)] {
                let written = spc.host.sh(&format!("echo x >{directory}/file"))?;
                ensure!(written.error_text().contains("Read-only"), "{written}");
            }
            driver.unpublish(&volume, id)?;
            driver.unstage(&volume)?;
        }
        is_clean(&spc)
    });
}

/// Memory of the container's first process, in KiB.
fn memory_of(spc: &Spc<'_>) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", spc.first()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("no VmRSS")?.parse()?)
}

#[test]
fn fifty_pods_start_at_once_and_the_drivers_stay_small() {
    with_lab(|lab| {
        let spc = serve(lab)?;
        let idle = memory_of(&spc)?;
        let before = spc.host.mountinfo()?.len();
        let pods: Vec<String> = (0..50).map(|pod| format!("pod-{pod}")).collect();
        let each = |work: &(dyn Fn(&str, &CsiVolume) -> Result<()> + Sync)| -> Result<()> {
            std::thread::scope(|scope| {
                let calls: Vec<_> = pods
                    .iter()
                    .map(|pod| scope.spawn(|| work(pod, &memory(pod))))
                    .collect();
                calls
                    .into_iter()
                    .try_for_each(|call| call.join().map_err(|_| anyhow::anyhow!("a panic"))?)
            })
        };
        for pod in &pods {
            let directory = memory(pod).staging(SHARE);
            spc.host.run(&["mkdir", "-p", &directory])?.ok()?;
        }
        let began = Instant::now();
        each(&|pod, volume| {
            let driver = Client::register(&spc, SHARE)?;
            driver.stage_as(driver.stage_request(volume))?;
            driver.publish(&spc, volume, pod)??;
            // kubelet may ask twice at the same time.
            driver.stage_as(driver.stage_request(volume))?;
            Ok(driver.publish_as(driver.publish_request(volume, pod))?)
        })?;
        eprintln!("200 calls for 50 pods: {:.1?}", began.elapsed());
        ensure!(spc.host.mountinfo()?.len() == before + 100);
        each(&|pod, volume| {
            let driver = Client::register(&spc, SHARE)?;
            driver.unpublish(volume, pod)?;
            Ok(driver.unstage(volume)?)
        })?;
        ensure!(spc.host.mountinfo()?.len() == before);
        let busy = memory_of(&spc)?;
        spc.remove()?;
        spc.run(Base::Trixie, &MINIMAL)?.ok()?;
        until("it serves", || Ok(spc.log()?.contains("serving")))?;
        let without = memory_of(&spc)?;
        eprintln!("KiB of spc serve: {without}, with --csi {idle}, after 50 pods {busy}");
        ensure!(idle < without + 8192 && busy < without + 16384);
        is_clean(&spc)
    });
}
