//! `mount.TYPE` and `umount.TYPE`, as mount(8) and umount(8) of a host run them.

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Output};

use crate::kubernetes::kubelet::install;
use crate::support::{Container, Spc, until, with_container, with_gluster};

/// Runs an installed helper of the host with these arguments, by its name or by another path.
fn helper<H: AnyHost>(spc: &Container<H>, name: &str, words: &[&str]) -> Result<Output> {
    let path = format!("/usr/sbin/{name}");
    let link = r#"[ -e "$1" ] || ln -s /var/lib/spc/current/usr/bin/spc "$1""#;
    spc.host.run(&["sh", "-c", link, "link", &path])?.ok()?;
    spc.host.run(&[&[path.as_str()], words].concat())
}

/// Directory that the tests mount on.
const TARGET: &str = "/mnt/data";

/// Runs a test's body with the frontends installed on a host, and the source of a volume.
fn with_helpers(body: impl FnOnce(&Spc<'static>, &str) -> Result<()>) {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        spc.host.run(&["mkdir", "-p", TARGET])?.ok()?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        body(&spc, &source)
    });
}

#[test]
fn mount_type_takes_the_arguments_of_mount() {
    with_helpers(|spc, source| {
        as_libmount_calls(spc, source).context("as libmount calls it")?;
        by_a_part_of_the_type(spc, source).context("by a part of the type")?;
        without_a_mount(spc, source).context("with -f")?;
        in_a_namespace(spc, source).context("with -N")
    });
}

/// libmount passes source and target, flags, options last.
fn as_libmount_calls(spc: &Spc<'_>, source: &str) -> Result<()> {
    let words = [source, TARGET, "-n", "-o", "rw,nodev"];
    helper(spc, "mount.glusterfs", &words)?.ok()?;
    ensure!(spc.on(TARGET)?.len() == 1 && spc.on(TARGET)?[0].options.contains("nodev"));
    spc.host.write("/mnt/data/helper", b"written")?;
    // The same request again is the same mount.
    helper(spc, "mount.glusterfs", &words)?.ok()?;
    ensure!(spc.on(TARGET)?.len() == 1);
    helper(spc, "umount.fuse.glusterfs", &[TARGET])?.ok()?;
    ensure!(spc.on(TARGET)?.is_empty());
    spc.is_clean()
}

/// The name has a part of the type, and -t the whole type. Verbose, and with a lazy unmount.
fn by_a_part_of_the_type(spc: &Spc<'_>, source: &str) -> Result<()> {
    let words = [source, TARGET, "-v", "-t", "spc.glusterfs"];
    let output = helper(spc, "mount.spc", &words)?.ok()?;
    ensure!(output.text().contains("mounted"), "{output}");
    let host = &spc.host;
    let busy = host.spawn(&["sh", "-c", "cd /mnt/data && sleep 50"])?;
    let inside = "ls -l /proc/[0-9]*/cwd 2>/dev/null | grep -q /mnt/data";
    until("a process is in the mount", || {
        Ok(host.sh(inside)?.success())
    })?;
    let failed = helper(spc, "umount.fuse", &[TARGET, "-t", "fuse.glusterfs"])?.code(32)?;
    ensure!(
        failed
            .error_text()
            .starts_with("umount.fuse: cannot unmount /mnt/data: "),
        "{failed}"
    );
    helper(spc, "umount.fuse", &["-l", TARGET])?.ok()?;
    drop(busy);
    until("the daemon ends", || Ok(spc.is_clean().is_ok()))
}

/// `-f` runs every step except the mount.
fn without_a_mount(spc: &Spc<'_>, source: &str) -> Result<()> {
    helper(spc, "mount.glusterfs", &[source, TARGET, "-f"])?.ok()?;
    ensure!(spc.on(TARGET)?.is_empty());
    Ok(())
}

/// `-N` accepts the host's namespace and no other.
fn in_a_namespace(spc: &Spc<'_>, source: &str) -> Result<()> {
    let words = [source, TARGET, "-N", "/proc/1/ns/mnt"];
    helper(spc, "mount.glusterfs", &words)?.ok()?;
    helper(spc, "umount.glusterfs", &[TARGET])?.ok()?;
    let words = [source, TARGET, "-N", &spc.pid()?];
    let refused = helper(spc, "mount.glusterfs", &words)?.code(1)?;
    ensure!(
        refused.error_text().starts_with("mount.glusterfs: bad -N"),
        "{refused}"
    );
    spc.is_clean()
}

#[test]
fn mount_type_has_the_exit_codes_of_mount() {
    with_helpers(|spc, source| {
        for (name, words, code, expected) in [
            ("mount.glusterfs", &[source][..], 1, "Usage"),
            ("mount.glusterfs", &[source, TARGET, "-z"], 1, "-z"),
            (
                "mount.glusterfs",
                &["nocolon", TARGET],
                1,
                "mount.glusterfs: bad source",
            ),
            (
                "mount.glusterfs",
                &[source, "/mnt/nosuch"],
                32,
                "no such directory",
            ),
            ("mount.fuse", &["source", TARGET], 1, "no FUSE program"),
            ("umount.glusterfs", &[TARGET], 32, "not mounted"),
            (
                "umount.glusterfs",
                &["/mnt/nosuch"],
                32,
                "no such directory",
            ),
        ] {
            let failed = helper(spc, name, words)?.code(code)?;
            ensure!(
                failed.error_text().contains(expected) && failed.stdout.is_empty(),
                "{failed}"
            );
        }
        spc.is_clean()
    });
}

#[test]
fn umount_type_unmounts_what_another_program_mounted() {
    with_container(|spc| {
        install(spc)?;
        let host = &spc.host;
        host.run(&["mkdir", "-p", TARGET])?.ok()?;
        host.run(&["mount", "-t", "tmpfs", "other", TARGET])?.ok()?;
        helper(spc, "umount.glusterfs", &[TARGET])?.ok()?;
        ensure!(spc.on(TARGET)?.is_empty());
        spc.is_clean()
    });
}
