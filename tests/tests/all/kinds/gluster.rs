//! The main job: a real GlusterFS volume on a minimal host, mounted by a container that docker or
//! podman runs.

use anyhow::{Result, ensure};
use lab::{Base, Cluster, Engine, Lab, Propagation};

use crate::support::{PRIVILEGED, Spc, entries, until, with_gluster};

/// Mounts a volume, checks data on the bricks, unmounts in two ways, and checks that every mount
/// table is as before.
pub fn main_job(spc: &Spc<'_>, cluster: &Cluster<'_>, target: &str) -> Result<()> {
    let node = cluster.nodes()[0].host().address();
    let source = format!("{node}:/vol");
    spc.host.run(&["mkdir", "-p", target])?.ok()?;
    let before = entries(&spc.host)?;
    let container = spc.mounts()?;

    let mount = ["-t", "glusterfs", &source, target];
    spc.mount(&mount)?;

    let on = spc.on(target)?;
    ensure!(on.len() == 1, "mounts on the target: {on:?}");
    ensure!(
        on[0].fstype == "fuse.glusterfs" && on[0].source == *source,
        "{on:?}"
    );
    until("the container's mount table is as before", || {
        Ok(spc.mounts()? == container)
    })?;
    ensure!(
        entries(&spc.host)? == before + 1,
        "{} entries before, {} after",
        before,
        entries(&spc.host)?
    );

    let name = target.replace('/', "-");
    let file = format!("{target}/{name}");
    spc.host.write(&file, b"written on the host\n")?;
    for node in cluster.nodes() {
        let copy = node.host().read(node.brick("vol").join(&name))?;
        ensure!(copy == b"written on the host\n", "on a brick: {copy:?}");
    }

    let list = spc.exec(&["spc", "ls", "--json"])?.ok()?.text();
    let list: serde_json::Value = serde_json::from_str(&list)?;
    ensure!(
        list[0]["target"] == target && list[0]["state"] == "ok",
        "{list}"
    );
    let daemon = list[0]["daemon"][0].to_string();
    spc.exec(&["kill", "-0", &daemon])?.ok()?;

    spc.umount(target)?;
    ensure!(
        spc.on(target)?.is_empty() && entries(&spc.host)? == before,
        "umount left an entry"
    );
    ensure!(
        !spc.exec(&["kill", "-0", &daemon])?.success(),
        "the daemon is still there"
    );
    spc.is_clean()?;

    spc.mount(&mount)?;
    spc.host.run(&["umount", target])?.ok()?;
    ensure!(
        spc.on(target)?.is_empty() && entries(&spc.host)? == before,
        "umount on the host left an entry"
    );
    until("spc serve forgets the mount", || Ok(spc.is_clean().is_ok()))?;
    ensure!(spc.exec(&["spc", "ls", "--json"])?.ok()?.text().trim() == "[]");
    Ok(())
}

fn with_everything(
    lab: &Lab,
    cluster: &Cluster<'_>,
    engine: Engine,
    propagation: Propagation,
    target: &str,
) -> Result<()> {
    let spc = Spc::start(lab, propagation, engine, Base::Trixie, &PRIVILEGED)?;
    main_job(&spc, cluster, target)
}

#[test]
fn docker_mounts_glusterfs_on_a_shared_root() {
    with_gluster(|lab, cluster| {
        with_everything(
            lab,
            cluster,
            Engine::Docker,
            Propagation::Shared,
            "/mnt/data",
        )
    });
}

#[test]
fn docker_mounts_glusterfs_on_a_private_root() {
    with_gluster(|lab, cluster| {
        with_everything(
            lab,
            cluster,
            Engine::Docker,
            Propagation::Private,
            "/mnt/private data",
        )
    });
}

#[test]
fn podman_mounts_glusterfs() {
    with_gluster(|lab, cluster| {
        with_everything(
            lab,
            cluster,
            Engine::Podman,
            Propagation::Shared,
            "/mnt/podman",
        )
    });
}

/// Fails the first N times with the message of a client whose threads raced, N in /var/log/races.
const RACING_CLIENT: &str = r#"#!/bin/sh
read -r left </var/log/races
[ "$left" = 0 ] && exec /usr/sbin/mount.glusterfs "$@"
echo $((left - 1)) >/var/log/races
echo "volume-id changed, can't connect to server. Needs remount"
exit 1
"#;

#[test]
fn a_client_whose_threads_raced_is_started_once_more() {
    with_gluster(|lab, cluster| {
        let (shared, base) = (Propagation::Shared, Base::Trixie);
        let spc = Spc::start(lab, shared, Engine::Docker, base, &PRIVILEGED)?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let mount = ["-ox-spc.container", "-tglusterfs", &source, "/mnt/data"];
        spc.host.run(&["mkdir", "-p", "/mnt/data"])?.ok()?;
        spc.put("/usr/local/sbin/mount.glusterfs", RACING_CLIENT.as_bytes())?;
        spc.put("/var/log/races", b"2\n")?;
        spc.refused_mount(&mount, 32, &["volume-id changed"])?;
        spc.put("/var/log/races", b"1\n")?;
        spc.mount(&mount)?;
        spc.umount("/mnt/data")?;
        spc.is_clean()
    });
}
