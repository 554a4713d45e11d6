//! Hosts on which only `spc install` was run. There, mount(8), fstab and umount(8) work as with the
//! file system's own client.

use anyhow::{Context, Result, ensure};
use lab::{Base, Cluster, Engine, Host, HostOptions, Lab, Output, Propagation, Root};

use crate::support::{PRIVILEGED, Spc, until, with_gluster};

/// Boots a host with mount(8) of util-linux, and runs the container once to install.
pub fn installed(lab: &Lab) -> Result<Spc<'_>> {
    let (shared, docker) = (Propagation::Shared, Engine::Docker);
    let spc = Spc::start(lab, shared, docker, Base::Trixie, &PRIVILEGED)?;
    spc.host
        .sh("ln -sf ../libexec/util-linux/mount ../libexec/util-linux/umount /usr/bin/")?
        .ok()?;
    spc.exec(&["spc", "install"])?.ok()?;
    spc.remove()?;
    Ok(spc)
}

/// Checks that no daemon is left, and at most a stale record, which the next command clears.
/// umount(8) calls no helper for a FUSE file system, and no `spc serve` runs here.
fn is_over(host: &Host<'_>) -> Result<()> {
    until("the daemons have ended", || {
        let marked = host.sh("grep -lzs ^SPC_MOUNT= /proc/[0-9]*/environ")?;
        Ok(marked.text().is_empty())
    })?;
    let list = host.run(&["spc", "ls", "--json"])?.ok()?.text();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list)?;
    let gone = list.iter().all(|record| record["state"] == "gone");
    ensure!(gone, "{list:?}");
    Ok(())
}

#[test]
fn glusterfs_works_by_mount_fstab_and_umount() {
    with_gluster(|lab, cluster| {
        let spc = installed(lab)?;
        let host = &spc.host;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let tables = crate::support::entries(host)?;
        host.run(&["mkdir", "-p", "/mnt/g"])?.ok()?;
        host.run(&["mount", "-t", "glusterfs", &source, "/mnt/g"])?
            .ok()?;
        is_used(&spc, cluster, &source)?;
        host.run(&["umount", "/mnt/g"])?.ok()?;
        ensure!(spc.on("/mnt/g")?.is_empty());
        is_over(host)?;

        let line = format!("{source} /mnt/g glusterfs defaults,_netdev,log-level=WARNING 0 0\n");
        host.write("/etc/fstab", line.as_bytes())?;
        host.run(&["mount", "-a"])?.ok()?;
        is_used(&spc, cluster, &source)?;
        // A second `mount -a` does nothing: mount(8) sees the mount.
        host.run(&["mount", "-a"])?.ok()?;
        ensure!(spc.on("/mnt/g")?.len() == 1);
        let list = host.run(&["spc", "ls"])?.ok()?.text();
        ensure!(list.contains("/mnt/g") && list.contains(" ok "), "{list}");
        host.run(&["umount", &source])?.ok()?;
        host.run(&["mount", "/mnt/g"])?.ok()?;
        host.run(&["umount", "-a", "-t", "fuse.glusterfs"])?.ok()?;
        ensure!(spc.on("/mnt/g")?.is_empty());
        is_over(host)?;
        // The client namespace is the only addition.
        host.run(&["spc", "uninstall"])?.ok()?;
        host.run(&["test", "-e", "/run/spc"])?.code(1)?;
        until("the mount tables are as they were", || {
            Ok(crate::support::entries(host)? <= tables)
        })
    });
}

/// Checks for one mount of the volume, and that writes reach the bricks.
fn is_used(spc: &Spc<'_>, cluster: &Cluster<'_>, source: &str) -> Result<()> {
    let on = spc.on("/mnt/g")?;
    ensure!(
        on.len() == 1 && on[0].fstype == "fuse.glusterfs" && on[0].source == source,
        "{on:?}"
    );
    let name = spc.host.name();
    spc.host.write(format!("/mnt/g/{name}"), b"by mount(8)\n")?;
    for node in cluster.nodes() {
        let copy = node.host().read(node.brick("vol").join(&name))?;
        ensure!(copy == b"by mount(8)\n", "on a brick: {copy:?}");
    }
    Ok(())
}

/// Compares the commands with those on a host that has GlusterFS' own client.
#[test]
fn exit_codes_and_messages_are_those_of_a_native_helper() {
    with_gluster(|lab, cluster| {
        let spc = installed(lab)?;
        let native = lab.host(HostOptions {
            root: Root::Server,
            ..HostOptions::default()
        })?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let missing = source.replace("/vol", "/no-such-volume");
        let mount =
            |source: &str, target: &str| format!("/usr/bin/mount -t glusterfs {source} {target}");
        for (what, script) in [
            ("a mount", mount(&source, "/mnt/g")),
            ("busy", "cd /mnt/g && /usr/bin/umount /mnt/g".into()),
            ("an unmount", "/usr/bin/umount /mnt/g".into()),
            ("not mounted", "/usr/bin/umount /mnt/g".into()),
            ("no source", "/usr/bin/mount -t glusterfs /mnt/g".into()),
            (
                "a bad flag",
                "/usr/bin/mount -t glusterfs --nosuch a /mnt/g".into(),
            ),
            ("not in fstab", "/usr/bin/mount /mnt/g".into()),
        ] {
            let run = |host: &Host<'_>| host.sh(&format!("mkdir -p /mnt/g; {script}"));
            let (ours, theirs) = (run(&spc.host)?, run(&native)?);
            ensure!(ours.status == theirs.status, "{what}: {ours}\n{theirs}");
            let (our_text, their_text) = (error_line(&ours), error_line(&theirs));
            ensure!(our_text == their_text, "{what}: {ours}\n{theirs}");
        }
        let failed = spc.host.sh(&mount(&source, "/mnt/none"))?.code(32)?;
        ensure!(
            failed.error_text().contains("no such directory"),
            "{failed}"
        );
        // Errors of the helper are in its own words, and mount(8) passes on its exit code.
        let failed = spc.host.sh(&mount(&missing, "/mnt/g"))?.code(32)?;
        let text = failed.error_text();
        ensure!(
            text.starts_with("mount.glusterfs: ") && text.contains("\nhint: "),
            "{failed}"
        );
        ensure!(!native.sh(&mount(&missing, "/mnt/g"))?.success());
        is_over(&spc.host)
    });
}

/// Returns the first error line of mount(8) or umount(8), without the final dot, which differs
/// between releases.
fn error_line(output: &Output) -> String {
    let text = output.error_text();
    let line = text.lines().next().unwrap_or_default();
    line.trim_end_matches('.').to_owned()
}

/// Checks that mounts of one version stay when another version is installed, and leave nothing of
/// the old one when they are gone.
#[test]
fn an_upgrade_keeps_every_mount() {
    with_gluster(|lab, cluster| {
        let spc = installed(lab)?;
        let host = &spc.host;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        host.run(&["mkdir", "-p", "/mnt/g", "/mnt/new"])?.ok()?;
        host.run(&["mount", "-t", "glusterfs", &source, "/mnt/g"])?
            .ok()?;
        is_used(&spc, cluster, &source)?;
        let before = spc.on("/mnt/g")?;
        let roots = || -> Result<Vec<String>> {
            let text = host.sh("ls /var/lib/spc/roots | grep -v lock")?.text();
            Ok(text.lines().map(str::to_owned).collect())
        };
        let old = roots()?;
        // The new version: one more program in the image.
        host.sh(
            "docker run --name next localhost/spc:latest true && docker cp /etc/hostname next:/usr/bin/one-more && \
             docker commit --change 'CMD [\"spc\", \"serve\"]' next localhost/spc:next && docker rm next",
        )?
        .ok()?;
        let run = "docker run -d --name spc --privileged --net=host --pid=host localhost/spc:next";
        host.sh(run)?.ok()?;
        let done = spc.exec(&["spc", "install", "--json"])?.ok()?.text();
        let done: serde_json::Value = serde_json::from_str(&done)?;
        ensure!(done["changed"] == true, "{done}");
        let root = done["root"].as_str().context("no root")?.to_owned();
        ensure!(
            !old.contains(&root) && roots()?.len() == 2,
            "{:?}",
            roots()?
        );
        ensure!(spc.on("/mnt/g")? == before, "{:?}", spc.on("/mnt/g")?);
        is_used(&spc, cluster, &source)?;
        // New mounts use the new version. The unmount of its last mount removes the old version.
        host.run(&["mount", "-t", "glusterfs", &source, "/mnt/new"])?
            .ok()?;
        let records = host
            .run(&["sh", "-c", "cat /run/spc/mounts/*.json"])?
            .text();
        ensure!(
            records.contains(&root) && records.contains(&old[0]),
            "{records}"
        );
        host.run(&["umount", "/mnt/g"])?.ok()?;
        until("the old client root file system is gone", || {
            Ok(roots()? == [root.clone()])
        })?;
        host.run(&["umount", "/mnt/new"])?.ok()?;
        // A running `spc serve` knows the mount as well.
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
