//! The defects of the shim of 2015. Each is a case that this shim passes and
//! `tests/programs/original.c`, which has them all, fails.

use anyhow::{Result, ensure};
use lab::{Lab, Libc};

use crate::shim::redirected_calls::Stage;
use crate::support::with_lab;

/// Run line of the original, as far as it matters here: no `--pid=host`, the host's tree at
/// `/host`.
const ORIGINAL: [&str; 6] = [
    "--privileged",
    "--net=host",
    "-e",
    "sysimage=/host",
    "-v",
    "/:/host",
];

struct Defect {
    name: &'static str,
    /// A script. `$C` makes calls, `$F` is the data of a FUSE mount, `@` the case's directory.
    script: &'static str,
    /// Output with this shim.
    ours: &'static str,
    /// Number of mounts of `@/data` afterwards, on the host and in the container, with this shim.
    mounted: (usize, usize),
    /// Words that show that the original fails for the stated reason.
    original: &'static str,
}

const DEFECTS: &[Defect] = &[
    Defect {
        name: "a null type crashes",
        script: "$C mount src @/data ramfs 0 NULL , mount NULL @/data NULL 0x40000 NULL; echo exit $?",
        ours: "mount 0 0;mount 0 0;state same;exit 0",
        mounted: (0, 1),
        original: "exit 139",
    },
    Defect {
        name: "setns fails, and it mounts in the container and reports success",
        script: "setpriv --bounding-set -sys_chroot --inh-caps -sys_chroot $C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount -1 1;state same",
        mounted: (0, 0),
        original: "mount 0 0",
    },
    Defect {
        name: "the namespace is not restored",
        script: "$C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "state changed: mounts",
    },
    Defect {
        name: "a descriptor leaks into the daemon",
        script: "$C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "state changed: fds",
    },
    Defect {
        name: "relative targets start at the host's root",
        script: "$C -c @ mount src data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "mount -1 2",
    },
    Defect {
        name: "a caller with threads cannot change its namespace",
        script: "$C -t 8 mount src @/data fuse.glusterfs 0 $F 2>&1",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "setns: Invalid argument",
    },
    Defect {
        name: "no umount",
        script: "$C mount src @/data fuse.glusterfs 0 $F >/dev/null; $C umount @/data",
        ours: "umount 0 0;state same",
        mounted: (0, 0),
        original: "umount -1 22",
    },
    Defect {
        name: "no umount2",
        script: "$C mount src @/data fuse.glusterfs 0 $F >/dev/null; $C umount2 @/data 2",
        ours: "umount2 0 0;state same",
        mounted: (0, 0),
        original: "umount2 -1 22",
    },
    Defect {
        name: "an errno as the return value",
        script: "sysimage=/nowhere $C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "mount -2",
    },
    Defect {
        name: "the container's own first process is taken for the host's",
        script: "unset sysimage; $C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "mount 0 0",
    },
    Defect {
        name: "settings by environment only, which nsenter does not bring along",
        script: "env -i $LOADER $C mount src @/data fuse.glusterfs 0 $F",
        ours: "mount 0 0;state same",
        mounted: (1, 0),
        original: "mount 0 0",
    },
    Defect {
        name: "a second mount looks for the namespace in the wrong one",
        script: "$C mount src @/x fuse.glusterfs 0 $F , mount src @/data fuse.glusterfs 0 $G",
        ours: "mount 0 0;mount 0 0;state same",
        mounted: (1, 0),
        original: "mount -2",
    },
];

impl Defect {
    /// Runs the case. Returns the output, and the numbers of mounts of `@/data`.
    fn run(&self, stage: &Stage<'_>, top: &str, library: &str) -> Result<(String, (usize, usize))> {
        stage.directories(top)?;
        let data = |fd| format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let script = format!(
            "exec 3<>/dev/fuse 4<>/dev/fuse; C=/call F={} G={} LOADER={library}; export {library}\n{}",
            data(3),
            data(4),
            self.script.replace('@', top)
        );
        let output = stage.spc.sh(&script)?;
        let printed = output.text().trim_end().replace('\n', ";");
        Ok((printed, stage.count(&format!("{top}/data"))?))
    }
}

fn defects(lab: &Lab) -> Result<()> {
    let stage = Stage::set(
        lab,
        &ORIGINAL,
        &lab::program("call", Libc::Gnu, &["-pthread"])?,
    )?;
    for (number, defect) in DEFECTS.iter().enumerate() {
        let (printed, mounted) = defect.run(&stage, &format!("/mnt/ours{number}"), "NONE=1")?;
        ensure!(
            printed == defect.ours && mounted == defect.mounted,
            "{}: our shim prints {printed}, mounted {mounted:?}, not {} and {:?}",
            defect.name,
            defect.ours,
            defect.mounted
        );
    }
    let original = lab::program("original", Libc::Gnu, &["-shared", "-fPIC", "-ldl"])?;
    stage.put(&original, "/original.so")?;
    stage.spc.sh(": >/etc/ld.so.preload")?.ok()?;
    for (number, defect) in DEFECTS.iter().enumerate() {
        let (printed, mounted) = defect.run(
            &stage,
            &format!("/mnt/original{number}"),
            "LD_PRELOAD=/original.so",
        )?;
        ensure!(
            printed != defect.ours || mounted != defect.mounted,
            "{}: a shim with this defect passes: {printed}, mounted {mounted:?}",
            defect.name
        );
        ensure!(
            printed.contains(defect.original),
            "{}: the original prints {printed}, not {}",
            defect.name,
            defect.original
        );
    }
    Ok(())
}

#[test]
fn no_defect_of_the_original_is_left() {
    with_lab(defects);
}

/// Checks that a mount fails without the host's `/proc`, and is not made in the container instead.
#[test]
fn a_mount_fails_without_the_hosts_proc() {
    with_lab(|lab| {
        let stage = Stage::set(
            lab,
            &["--privileged", "--net=host"],
            &lab::program("call", Libc::Gnu, &["-pthread"])?,
        )?;
        stage.directories("/mnt/case")?;
        let output = stage.spc.exec(&[
            "env",
            "SPC_TYPES=tmpfs",
            "/call",
            "mount",
            "src",
            "/mnt/case/data",
            "tmpfs",
            "0",
            "NULL",
        ])?;
        ensure!(
            output.text() == "mount -1 67\nstate same",
            "{}",
            output.text()
        );
        ensure!(stage.count("/mnt/case/data")? == (0, 0));
        Ok(())
    });
}
