//! `spc doctor --kind`: a missing part is reported by name with a hint, and an unneeded part is
//! not.

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Base, Engine, Propagation};
use serde_json::Value;

use crate::support::{Container, MINIMAL, PRIVILEGED, Spc, with_lab};

/// Failed checks of a kind, each with its hint.
pub fn missed<H: AnyHost>(spc: &Container<H>, kind: &str) -> Result<Vec<(String, String)>> {
    let output = spc.exec(&["spc", "doctor", "--json", "--kind", kind])?;
    let checks: Vec<Value> =
        serde_json::from_str(&output.text()).with_context(|| format!("not JSON: {output}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let failed = checks.iter().filter(|check| check["ok"] == false);
    let failed: Vec<_> = failed
        .map(|check| {
            let what = format!("{}: {}", text(&check["name"]), text(&check["found"]));
            (what, text(&check["hint"]))
        })
        .collect();
    ensure!(output.success() == failed.is_empty(), "{output}");
    for (what, hint) in &failed {
        ensure!(!hint.is_empty(), "no hint: {what}");
        eprintln!("{what}\n     hint: {hint}");
    }
    Ok(failed)
}

/// Checks that exactly this is reported: name and text of the check, and a part of the hint.
pub fn misses<H: AnyHost>(spc: &Container<H>, kind: &str, what: &str, hint: &str) -> Result<()> {
    let missed = missed(spc, kind)?;
    let found = missed.iter().find(|(found, _)| found.starts_with(what));
    ensure!(
        found.is_some_and(|(_, hinted)| hinted.contains(hint)),
        "{kind}: no {what:?} with {hint:?} in {missed:?}"
    );
    Ok(())
}

/// Checks that nothing is reported.
pub fn has_all<H: AnyHost>(spc: &Container<H>, kind: &str) -> Result<()> {
    let missed = missed(spc, kind)?;
    ensure!(missed.is_empty(), "{kind}: {missed:?}");
    Ok(())
}

#[test]
fn doctor_names_the_missing_programs_of_each_kind() {
    with_lab(|lab| {
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        let spc = Spc::start(lab, shared, docker, Base::Trixie, &PRIVILEGED)?;
        for kind in [
            "glusterfs",
            "gluster",
            "fuse.bindfs",
            "sshfs",
            "fuse.sshfs",
            "fuse",
            "tmpfs",
            "bind",
        ] {
            has_all(&spc, kind)?;
        }
        let remove = "for program in mount.glusterfs mount.nfs rpc.statd mount.ceph mount.cifs sshfs iscsiadm; do
            rm $(command -v $program) || exit 1; done";
        spc.sh(remove)?.ok()?;
        for (kind, program, package) in [
            ("glusterfs", "mount.glusterfs", "glusterfs-client"),
            ("gluster", "mount.glusterfs", "glusterfs-client"),
            ("nfs", "mount.nfs", "nfs-common"),
            ("nfs3", "rpc.statd", "nfs-common"),
            ("ceph", "mount.ceph", "ceph-common"),
            ("cifs", "mount.cifs", "cifs-utils"),
            ("smb", "mount.cifs", "cifs-utils"),
            ("fuse.sshfs", "sshfs", "sshfs"),
            ("fuse.nosuch", "nosuch", "nosuch"),
            ("iscsi", "iscsiadm", "open-iscsi"),
        ] {
            let what = format!("{kind} program: this container has no {program}");
            misses(&spc, kind, &what, &format!("apt-get install {package}"))?;
        }
        // A part that one kind lacks does not concern another kind, nor the container as such.
        for kind in ["fuse.bindfs", "tmpfs"] {
            has_all(&spc, kind)?;
        }
        let plain = spc.exec(&["spc", "doctor"])?.ok()?.text();
        ensure!(!plain.contains("glusterfs"), "{plain}");
        let both = ["spc", "doctor", "--kind", "tmpfs", "--kind", "glusterfs"];
        let both = spc.exec(&both)?.code(2)?.text();
        ensure!(both.contains("FAIL glusterfs program"), "{both}");

        let output = spc.exec(&["spc", "doctor", "--kind", "nosuch"])?.code(1)?;
        let error = output.error_text();
        ensure!(
            error.starts_with("spc: unknown kind: nosuch")
                && error.contains("hint: known: glusterfs, nfs"),
            "{output}"
        );
        Ok(())
    });
}

#[test]
fn doctor_names_what_the_container_was_not_given() {
    with_lab(|lab| {
        let without = |part: &str| -> Vec<&str> {
            MINIMAL.into_iter().filter(|word| *word != part).collect()
        };
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        let no_fuse = without("--device=/dev/fuse");
        let spc = Spc::start(lab, shared, docker, Base::Trixie, &no_fuse)?;
        has_all(&spc, "tmpfs")?;
        misses(
            &spc,
            "fuse.bindfs",
            "fuse.bindfs device: cannot open /dev/fuse",
            "--device=/dev/fuse",
        )?;
        let options = "--cap-add=NET_BIND_SERVICE --cap-add=SETUID --cap-add=SETGID --cap-add=SETPCAP --cap-add=KILL";
        let what = "nfs3 capabilities: missing: NET_BIND_SERVICE, SETUID, SETGID, SETPCAP, KILL";
        misses(&spc, "nfs3", what, options)?;
        for kind in ["iscsi", "rbd"] {
            misses(
                &spc,
                kind,
                &format!("{kind} /sys: cannot write to /sys"),
                "-v /sys:/sys",
            )?;
            misses(
                &spc,
                kind,
                &format!("{kind} /dev: the container has a /dev of its own"),
                "-v /dev:/dev",
            )?;
        }
        spc.remove()?;
        let given = [&no_fuse[..], &["-v", "/sys:/sys", "-v", "/dev:/dev"]].concat();
        spc.run(Base::Trixie, &given)?.ok()?;
        let missed = missed(&spc, "iscsi")?;
        ensure!(
            missed
                .iter()
                .all(|(what, _)| what.starts_with("iscsi module")),
            "{missed:?}"
        );
        spc.remove()?;
        spc.run(Base::Trixie, &without("--net=host"))?.ok()?;
        for kind in ["nfs", "ceph", "cifs"] {
            misses(&spc, kind, &format!("{kind} network"), "--net=host")?;
        }
        // FUSE daemons live and end with the container in any case, but the container itself should
        // have it.
        misses(&spc, "glusterfs", "network: ", "--net=host")?;
        spc.remove()?;
        spc.run(Base::Trixie, &without("--pid=host"))?.ok()?;
        misses(
            &spc,
            "ceph",
            "ceph module: the host cannot be inspected",
            "check named host",
        )?;
        misses(&spc, "ceph", "host: ", "--pid=host")
    });
}
