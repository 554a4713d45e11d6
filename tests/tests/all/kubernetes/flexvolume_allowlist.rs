//! Volumes on the node itself: memory, and directories and disks that the node's allow list
//! permits.

use anyhow::{Context, Result, ensure};

use crate::kubernetes::flexvolume::{grows, life, size};
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::images::{Attached, attach};
use crate::support::with_container;

/// Allow list of a node for its pods.
const OF_NODE: &str = "/etc/spc/flexvolume.conf";

#[test]
fn pods_use_of_the_node_only_what_it_allows() {
    with_container(|spc| {
        install(spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);

        // Memory of the pod's own needs no permission.
        let memory =
            |options: &str| Volume::new("tmpfs", &[("source", "memory"), ("options", options)]);
        let mut pod = Pod::new("1-1", memory("size=1m,mode=0700"));
        pod.fs_group = Some(2000);
        life(spc, &kubelet, &pod, "tmpfs", |directory| {
            ensure!(size(host, directory)? == 1024 * 1024);
            let seen = host.sh(&format!("stat -c %g {directory}"))?.ok()?.text();
            ensure!(seen == "2000", "{seen}");
            host.write(format!("{directory}/file"), b"by a pod")
        })?;
        let refused = |pod: &Pod, expected: &str| -> Result<()> {
            let failed = kubelet
                .set_up(pod)
                .err()
                .context("the driver mounted the volume")?;
            ensure!(failed.to_string().contains(expected), "{failed}");
            ensure!(spc.on(pod.directory())?.is_empty());
            spc.is_clean()
        };
        refused(&Pod::new("1-2", memory("mode=0700")), "no size")?;

        host.sh("mkdir -p /srv/shared /srv/lower /etc/spc && mkdir /srv/layers && mount -t tmpfs layers /srv/layers && mkdir /srv/layers/upper /srv/layers/work")?
            .ok()?;
        host.write("/srv/shared/file", b"of the node")?;
        host.write("/srv/lower/file", b"of the node")?;
        let ext4 = attach(host, 64, &["mkfs.ext4", "-q", "-F"])?.device;
        let Attached { device: xfs, file } =
            attach(host, 64, &["mkfs.xfs", "-q", "--unsupported"])?;
        let of_node = |fs_type: &str, source: &str| Volume::new(fs_type, &[("source", source)]);
        let rows = [
            ("bind", "/srv/shared", "", "overlay"),
            (
                "overlay",
                "merged",
                "lowerdir=/srv/lower,upperdir=/srv/layers/upper,workdir=/srv/layers/work",
                "overlay",
            ),
            ("fuse.bindfs", "/host/srv/shared", "allow_other", "fuse"),
            ("fuse3", "bindfs#/host/srv/shared", "allow_other", "fuse"),
            ("ext4", &ext4, "noatime", "ext4"),
            ("xfs", &xfs, "nosuid", "xfs"),
        ];
        for (fs_type, source, ..) in rows {
            refused(&Pod::new("2-1", of_node(fs_type, source)), OF_NODE)?;
        }

        let line = |(fs_type, source, options, _): (&str, &str, &str, &str)| {
            format!("allow {fs_type} {source} {options}\n")
        };
        host.write(OF_NODE, rows.map(line).concat().as_bytes())?;
        for (fs_type, source, options, shown) in rows {
            let pod = Pod::new("3-1", of_node(fs_type, source));
            life(spc, &kubelet, &pod, shown, |directory| {
                if fs_type == "ext4" || fs_type == "xfs" {
                    let first = options.split(',').next().unwrap_or_default();
                    ensure!(spc.on(directory)?[0].options.contains(first));
                } else {
                    ensure!(host.read(format!("{directory}/file"))? == b"of the node");
                }
                host.write(format!("{directory}/new"), b"by a pod")?;
                ensure!(host.read(format!("{directory}/new"))? == b"by a pod");
                host.run(&["rm", &format!("{directory}/new")])?
                    .ok()
                    .map(drop)
            })?;
            let mut pod = pod;
            pod.volume.read_only = true;
            life(spc, &kubelet, &pod, shown, |directory| {
                let refused = host.sh(&format!("echo x >{directory}/ro"))?;
                ensure!(refused.error_text().contains("Read-only"), "{refused}");
                Ok(())
            })?;
        }

        // A file system grows to the size of the node's disk.
        let pod = Pod::new("4-1", of_node("xfs", &xfs));
        life(spc, &kubelet, &pod, "xfs", |directory| {
            grows(&kubelet, host, directory, 0, |size| {
                host.sh(&format!("truncate -s {size}M {file} && losetup -c {xfs}"))?
                    .ok()
                    .map(drop)
            })
        })?;

        // The allow list permits nothing else.
        refused(&Pod::new("5-1", of_node("bind", "/srv")), OF_NODE)?;
        refused(&Pod::new("5-1", of_node("bind", "/srv/shared/")), OF_NODE)?;
        let mut more = of_node("bind", "/srv/shared");
        more.options.push(("options".into(), "rbind".into()));
        refused(&Pod::new("5-1", more), "not for pods")?;
        let again = Pod::new("5-1", of_node("bind", "/srv/shared"));
        for open in [
            "chmod 666",
            "chmod 664",
            "chmod 644 $1 && chown 1000",
            "chown 0:1000 $1 && chmod 664",
        ] {
            host.run(&["sh", "-c", &format!("{open} $1"), "open", OF_NODE])?
                .ok()?;
            refused(&again, "users other than root may write it")?;
        }
        host.sh(&format!(
            "chown 0:0 {OF_NODE}; chmod 644 {OF_NODE}; echo deny all >>{OF_NODE}"
        ))?
        .ok()?;
        refused(&again, "line 7")
    });
}
