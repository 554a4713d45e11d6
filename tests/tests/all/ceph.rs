//! CephFS from a real cluster, and that cluster itself.

use anyhow::ensure;

#[test]
fn a_ceph_cluster_keeps_files_and_images() -> anyhow::Result<()> {
    let Some(ceph) = lab::ceph() else {
        return Ok(());
    };
    let host = ceph.host();
    host.write("/mnt/other/file", b"of the administrator")?;
    host.sh("sync -f /mnt/other/file")?.ok()?;
    let inode = ceph.sh("stat -c %i /mnt/other/file")?.trim().parse()?;
    ensure!(ceph.bytes(inode)? == b"of the administrator");
    let sessions = ceph.sessions("admin")?;
    ensure!(
        sessions.len() == 1 && sessions[0].root == "/" && !sessions[0].kernel,
        "{sessions:?}"
    );
    ceph.sh("rbd create --size 16M rbd/cluster")?;
    ensure!(ceph.watchers("cluster")?.is_empty());
    let keyring = ceph.keyring("app")?;
    ensure!(keyring.contains(ceph.secret("app")?.trim()), "{keyring}");
    Ok(())
}
