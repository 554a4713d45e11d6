//! Faults below the shim in programs that mount: in a helper of the launcher, and in mount(8) by
//! itself.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Libc, program};

use crate::crash::fixture::{Case, Scene};
use crate::shim::redirected_calls::Stage;
use crate::support::{MINIMAL, with_lab};

/// Errnos of the helper's mount(2): permission, missing source, I/O error, memory, busy, unknown
/// type, bad argument, full disk, read-only, timeout, stale handle, unknown call.
const ERRNOS: [i32; 12] = [1, 2, 5, 12, 16, 19, 22, 28, 30, 110, 116, 38];

fn helper(scene: &Scene<'_>) -> Result<()> {
    let spc = &scene.spc;
    let library = lab::library("spc-fault", "libspc_fault.so")?;
    spc.put("/fault.so", &fs::read(library)?)?;
    let real = program("helper", Libc::Gnu, &[])?;
    spc.put("/usr/local/lib/mount.ramfs", &fs::read(real)?)?;
    spc.host.sh("mkdir /mnt/made")?.ok()?;
    let case = Case::new("a helper", &["-t", "ramfs", "made"], "/mnt/made", 3, 0);
    let faulty = |fault: &str| {
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD='/usr/lib/spc/libspc_shim.so /fault.so' SPC_FAULT={fault}\nexec /usr/local/lib/mount.ramfs \"$@\"\n"
        );
        spc.put("/usr/local/sbin/mount.ramfs", script.as_bytes())
    };
    let refused = |fault: &str, more: &[&str], expected: &str| -> Result<()> {
        faulty(fault)?;
        let words = [&case.mount[..2], more, &case.mount[2..]].concat();
        let output = scene
            .run(&words)?
            .code(32)
            .with_context(|| fault.to_owned())?;
        let error = output.error_text();
        ensure!(
            error.starts_with("spc: ") && error.contains(expected),
            "{fault}: {output}"
        );
        scene.is_clean().with_context(|| fault.to_owned())
    };
    for errno in ERRNOS {
        refused(
            &format!("mount={errno}"),
            &[],
            "mount.ramfs: cannot mount on /mnt/made",
        )?;
    }
    // The shim's child is killed before its mount or after it, or reports success without a mount.
    for fault in ["mount=kill", "mount=die", "mount=lie"] {
        refused(fault, &[], "shim: ")?;
    }
    refused(
        "mount=delay:20000",
        &["--timeout", "1"],
        "killed by spc after 1 s",
    )?;
    for fault in ["mount=delay:1500", "none"] {
        faulty(fault)?;
        scene.run(&case.mount)?.ok()?;
        scene.is_mounted(&case)?;
        scene.run(&["spc", "umount", case.target])?.ok()?;
        scene.is_clean()?;
    }
    spc.is_clean()
}

#[test]
fn a_helper_with_a_failing_mount_call_leaves_nothing() {
    with_lab(|lab| helper(&Scene::new(lab, false)?));
}

/// Injects faults below the shim into the container's mount(8): memory, permission, and death.
#[test]
fn mount_reports_faults_below_the_shim() {
    with_lab(|lab| {
        let stage = Stage::set(lab, &MINIMAL, &program("call", Libc::Gnu, &["-pthread"])?)?;
        stage.put(&lab::library("spc-fault", "libspc_fault.so")?, "/fault.so")?;
        stage.directories("/mnt/top")?;
        let mount = |fault: &str, options: &str, succeeds: bool| -> Result<()> {
            let script = format!(
                "SPC_TYPES=tmpfs LD_PRELOAD='/usr/lib/spc/libspc_shim.so /fault.so' SPC_FAULT={fault} mount -t tmpfs -o {options} top /mnt/top/data"
            );
            let output = stage.spc.sh(&script)?;
            let count = stage.count("/mnt/top/data")?;
            ensure!(
                output.success() == succeeds && count == (usize::from(succeeds), 0),
                "{count:?} {output}"
            );
            Ok(())
        };
        for (call, options) in [
            ("fsopen", "size=1m"),
            ("fsconfig", "size=1m"),
            ("fsmount", "size=1m"),
            ("move_mount", "size=1m"),
            ("mount_setattr", "noatime"),
        ] {
            for how in ["12", "1", "kill"] {
                mount(&format!("{call}={how}"), options, false)?;
            }
        }
        mount("none", "noatime", true)
    });
}
