//! Kernel modules on a host without a program to load them.

use anyhow::{Result, ensure};
use lab::Lab;

use crate::observe::doctor::{has_all, misses};
use crate::support::{VmSpc, with_lab};

const LIMITED: [&str; 5] = [
    "setpriv",
    "--bounding-set",
    "-sys_module",
    "--inh-caps",
    "-sys_module",
];

const CIFS: [&str; 9] = [
    "spc",
    "mount",
    "--timeout",
    "60",
    "-t",
    "cifs",
    "-oguest",
    "//192.0.2.250/share",
    "/mnt/data",
];

/// Returns whether the kernel supports a file system.
fn has(spc: &VmSpc<'_>, file_system: &str) -> Result<bool> {
    let table = spc.host.run(&["cat", "/proc/filesystems"])?.ok()?.text();
    Ok(table
        .lines()
        .any(|line| line.ends_with(&format!("\t{file_system}"))))
}

fn not_to_be_had(spc: &VmSpc<'_>, release: &str) -> Result<()> {
    let lacks = |name: &str, why: &str| {
        format!(
            "the host's kernel has no file system {name}, and module {name} for Linux {release} cannot be loaded: {why}"
        )
    };
    let capability = lacks("cifs", "capability CAP_SYS_MODULE is missing");
    let limited = [&LIMITED[..], &CIFS].concat();
    let hint =
        "hint: on the host, try: modprobe cifs; or start the container with --cap-add=SYS_MODULE";
    spc.refused(&limited, 32, &[&capability, hint])?;
    let doctor = [&LIMITED[..], &["spc", "doctor", "--kind", "cifs"]].concat();
    let report = spc.exec(&doctor)?.code(2)?.text();
    ensure!(
        report.contains("FAIL cifs module") && report.contains("--cap-add=SYS_MODULE"),
        "{report}"
    );

    // A modprobe rule of the administrator is respected.
    spc.host
        .write("/etc/modprobe.d/no.conf", b"install cifs /bin/false\n")?;
    let forbidden = lacks(
        "cifs",
        "/usr/sbin/modprobe -d /proc/1/root cifs: exit status 1: ",
    );
    spc.refused(&CIFS, 32, &[&forbidden, "modprobe.d"])?;
    spc.host.run(&["rm", "/etc/modprobe.d/no.conf"])?.ok()?;

    spc.host.run(&["umount", "/lib/modules"])?.ok()?;
    let why = format!("there is no /lib/modules/{release} on the host");
    let hint = format!("hint: install the modules of Linux {release} on the host");
    spc.refused(&CIFS, 32, &[&lacks("cifs", &why), &hint])?;
    // A kind without helper fails in the same way, before spc looks at the disk.
    let xfs = ["-t", "xfs", "/dev/vda", "/mnt/data"];
    spc.refused_mount(&xfs, 32, &[&lacks("xfs", &why), &hint])?;
    let nfs = ["-t", "nfs", "192.0.2.250:/x", "/mnt/data"];
    spc.refused_mount(&nfs, 32, &[&lacks("nfs", &why), &hint])?;
    misses(
        spc,
        "nfs",
        &format!("nfs module: no module nfs for Linux {release}"),
        "install the modules",
    )?;
    spc.host
        .sh("mount -t squashfs -o ro /dev/vdb /lib/modules")?
        .ok()?;
    // Modules of another kernel release are ignored.
    spc.host
        .sh(&format!(
            "mkdir -p /run/other/{release} && mount --bind /run/other /lib/modules"
        ))?
        .ok()?;
    let missing = lacks(
        "cifs",
        "/usr/sbin/modprobe -d /proc/1/root cifs: exit status 1: modprobe: FATAL: Module cifs not found in directory",
    );
    spc.refused(&CIFS, 32, &[&missing, &hint])?;
    spc.host.run(&["umount", "/lib/modules"])?.ok()?;
    for file_system in ["cifs", "xfs", "nfs", "fuse"] {
        ensure!(
            !has(spc, file_system)?,
            "the kernel already has {file_system}"
        );
    }
    Ok(())
}

fn loaded_from_the_host(spc: &VmSpc<'_>) -> Result<()> {
    for kind in ["nfs", "cifs", "ceph", "glusterfs", "xfs"] {
        if kind != "glusterfs" {
            has_all(spc, kind)?;
        }
    }
    let report = spc.exec(&["spc", "doctor", "--kind", "nfs"])?.ok()?.text();
    let how =
        "nfs is loaded when it is needed, by /usr/sbin/modprobe from /proc/1/root/lib/modules";
    ensure!(report.contains(how), "{report}");

    spc.host.write("/srv/source/file", b"seen through")?;
    let mount = ["-t", "fuse.bindfs", "/proc/1/root/srv/source"];
    spc.life(&mount, "/mnt/bindfs", ["fuse", mount[2]], |_| {
        ensure!(spc.host.read("/mnt/bindfs/file")? == b"seen through");
        Ok(())
    })?;
    // With modules loaded, the errors come from the server and the disk.
    let cifs = spc.refused(&CIFS, 32, &["mount.cifs failed"])?.error_text();
    let xfs = ["-t", "xfs", "/dev/vda", "/mnt/data"];
    let xfs = spc
        .refused_mount(&xfs, 32, &["cannot mount /dev/vda as xfs"])?
        .error_text();
    let nfs = [
        "--timeout",
        "20",
        "-t",
        "nfs",
        "192.0.2.250:/x",
        "/mnt/data",
    ];
    let nfs = spc.refused_mount(&nfs, 32, &["mount.nfs"])?.error_text();
    for output in [&cifs, &xfs, &nfs] {
        ensure!(!output.contains("cannot be loaded"), "{output}");
    }
    for file_system in ["cifs", "xfs", "nfs", "fuse"] {
        ensure!(
            has(spc, file_system)?,
            "the kernel still lacks {file_system}"
        );
    }
    // The kernel requests the module of an NFS version itself, and fails on such a host.
    for part in ["nfsv3", "nfsv4"] {
        spc.host
            .run(&["test", "-d", &format!("/sys/module/{part}")])?
            .ok()?;
    }
    Ok(())
}

fn modules(lab: &'static Lab) -> Result<()> {
    let spc = VmSpc::privileged(lab)?;
    let release = spc.host.run(&["uname", "-r"])?.ok()?.text();
    let bare = "mkdir /mnt/data; rm /usr/sbin/modprobe; ! test -e /sbin/modprobe";
    spc.host.sh(bare)?.ok()?;
    not_to_be_had(&spc, release.trim())?;
    loaded_from_the_host(&spc)?;
    // A loaded module needs no file.
    spc.host.write("/proc/sys/kernel/modules_disabled", b"1")?;
    has_all(&spc, "nfs")?;
    misses(
        &spc,
        "ceph",
        "ceph module: no module ceph",
        "use a kernel that has ceph",
    )?;
    let limited = [
        &LIMITED[..],
        &["spc", "mount", "-t", "tmpfs", "x", "/mnt/data"],
    ]
    .concat();
    spc.exec(&limited)?.ok()?;
    spc.umount("/mnt/data")?;
    spc.is_clean()
}

#[test]
fn modules_load_on_a_host_without_modprobe() {
    with_lab(modules);
}
