//! Hosts with AppArmor: what docker's own profile refuses, and the profile of the image.

use anyhow::{Result, ensure};
use lab::{Root, VmOptions};
use serde_json::Value;

use crate::kinds::fuse::sshd;
use crate::support::{VmSpc, with_gluster};

/// The rules of docker's template (profiles/apparmor in moby), without those for peers that are no
/// part of this test.
const DOCKER_DEFAULT: &str = "
abi <abi/3.0>,
@{PROC}=/proc/
profile docker-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=docker-default,
  deny @{PROC}/* w,
  deny /sys/[^f]*/** wklx,
  deny mount,
  ptrace (trace,read,tracedby,readby) peer=docker-default,
}
";

/// Loads a profile from standard input.
const LOAD: [&str; 3] = ["sh", "-c", "apparmor_parser --replace --skip-cache"];

/// Starts the container under a profile.
fn start(spc: &VmSpc<'_>, profile: &str) -> Result<()> {
    let confine = |config: &mut Value| config["process"]["apparmorProfile"] = profile.into();
    spc.host.start_changed(confine)
}

/// Checks the words of docker's own profile: one row of `spc doctor` and one hint, which name what
/// is enough.
fn other_profile_is_named(spc: &VmSpc<'_>) -> Result<()> {
    let load = spc.host.command(&LOAD).input(DOCKER_DEFAULT.as_bytes());
    load.run()?.ok()?;
    start(spc, "docker-default")?;
    let enough = "--security-opt apparmor=spc;";
    let mount = ["-t", "tmpfs", "none", "/mnt"];
    spc.refused_mount(&mount, 2, &["AppArmor profile docker-default", enough])?;
    let report = spc.exec(&["spc", "doctor"])?.code(2)?.text();
    let failed: Vec<&str> = report
        .lines()
        .filter(|line| line.trim_start().starts_with("FAIL"))
        .collect();
    ensure!(
        failed.len() == 1 && failed[0].contains("FAIL host") && report.contains(enough),
        "{report}"
    );
    // The test looks for denials of the image's profile in the same way.
    let denied = spc.host.sh(&denials("docker-default"))?;
    ensure!(!denied.stdout.is_empty(), "no denials in the log: {denied}");
    spc.remove()
}

/// Prints the denials of a profile in the kernel's log.
fn denials(profile: &str) -> String {
    format!(r#"dmesg | grep 'apparmor="DENIED".*profile="{profile}"'"#)
}

#[test]
fn the_apparmor_profile_of_the_image_allows_what_is_needed() {
    with_gluster(|lab, cluster| {
        let systemd = VmOptions {
            root: Root::Systemd,
            ..VmOptions::default()
        };
        let spc = VmSpc::booted(lab, systemd)?;
        other_profile_is_named(&spc)?;

        let file = "/run/container/rootfs/usr/share/spc/apparmor/spc";
        let profile = spc.host.read(file)?;
        spc.host.command(&LOAD).input(&profile).run()?.ok()?;
        start(&spc, "spc")?;
        let label = spc.sh("cat /proc/self/attr/current")?;
        ensure!(label.text() == "spc (enforce)", "{label}");
        spc.exec(&["spc", "doctor"])?.ok()?;

        let server = sshd(lab)?;
        spc.put("/run/key", &server.read("/root/key")?)?;
        spc.sh("chmod 600 /run/key")?.ok()?;
        let options = "x-mount.mkdir,IdentityFile=/run/key,StrictHostKeyChecking=no";
        let shared = format!("root@{}:/srv/data", server.address());
        let volume = format!("{}:/vol", cluster.nodes()[0].host().address());
        for (kind, source) in [
            ("tmpfs", "none"),
            ("sshfs", &shared),
            ("glusterfs", &volume),
        ] {
            let options = if kind == "sshfs" {
                options
            } else {
                "x-mount.mkdir"
            };
            let target = format!("/mnt/{kind}");
            spc.mount(&["-t", kind, "-o", options, source, &target])?;
            spc.host.write(format!("{target}/apparmor"), b"written")?;
            let record = spc.record(&target)?;
            ensure!(record["state"] == "ok", "{record}");
            spc.umount(&target)?;
        }
        ensure!(server.read("/srv/data/apparmor")? == b"written");
        let denied = spc.host.sh(&denials("spc"))?;
        ensure!(denied.stdout.is_empty(), "{denied}");
        let trace = spc.sh("echo h >/proc/sysrq-trigger")?;
        ensure!(!trace.success(), "the profile is not enforced: {trace}");
        spc.is_clean()
    });
}
