//! System calls of a mount, an unmount and a repair that fail, are delayed, or kill their process
//! (`syscall_trial.rs`).

use std::fs;

use anyhow::Result;
use lab::{Libc, program};

use crate::crash::fault_choice::Extent;
use crate::crash::fixture::{Case, Scene};
use crate::crash::syscall_trial::{Trial, What};
use crate::install::native_commands::installed;
use crate::support::images::attach;
use crate::support::{Spc, entries, with_lab};

/// Trials of a case.
type Tried<'a> = &'a dyn Fn(&Scene<'_>, &Case<'_>) -> Result<()>;

/// Tries each system call of these commands.
fn each(extent: Extent, whats: &[What]) -> impl Fn(&Scene<'_>, &Case<'_>) -> Result<()> {
    move |scene, case| {
        let mut whats = whats.iter();
        whats.try_for_each(|what| Trial::begin(scene, case, *what)?.each(extent))
    }
}

/// Tries this many pairs of faults in each of these commands.
fn pairs(number: usize, whats: &[What]) -> impl Fn(&Scene<'_>, &Case<'_>) -> Result<()> {
    move |scene, case| {
        let mut whats = whats.iter();
        whats.try_for_each(|what| Trial::begin(scene, case, *what)?.pairs(number))
    }
}

/// Runs the trials in a container with the recommended run line, where `spc serve` is stopped.
fn contained(case: impl FnOnce(&Scene<'_>) -> Result<Case<'static>>, tried: Tried<'_>) {
    in_container(false, case, tried);
}

fn in_container(
    serving: bool,
    case: impl FnOnce(&Scene<'_>) -> Result<Case<'static>>,
    tried: Tried<'_>,
) {
    with_lab(|lab| {
        let scene = Scene::new(lab, serving)?;
        scene.spc.host.sh("mkdir /mnt/scratch /mnt/made")?.ok()?;
        let case = case(&scene)?;
        tried(&scene, &case)?;
        scene.spc.is_clean()
    });
}

fn tmpfs() -> Case<'static> {
    Case::new(
        "tmpfs",
        &["-t", "tmpfs", "-o", "size=1m", "scratch"],
        "/mnt/scratch",
        0,
        0,
    )
}

/// Installs a helper for the type ramfs: a dynamic one that the shim enters, or a static one whose
/// mount is grafted.
fn helper(scene: &Scene<'_>, arguments: &[&str]) -> Result<Case<'static>> {
    let helper = program("helper", Libc::Gnu, arguments)?;
    scene
        .spc
        .put("/usr/local/sbin/mount.ramfs", &fs::read(helper)?)?;
    let (title, redirects) = if arguments.is_empty() {
        ("a helper", 3)
    } else {
        ("a static helper", 2)
    };
    Ok(Case::new(
        title,
        &["-t", "ramfs", "made"],
        "/mnt/made",
        redirects,
        0,
    ))
}

/// A FUSE program with a daemon, whose mount is not repaired.
fn daemon(scene: &Scene<'_>) -> Result<Case<'static>> {
    scene.spc.sh("mkdir /srv/source")?.ok()?;
    let words = ["-t", "fuse.bindfs", "-o", "x-spc.repair=no", "/srv/source"];
    Ok(Case::new("bindfs", &words, "/mnt/made", 3, 1))
}

/// A FUSE program whose mount is repaired.
fn repaired(scene: &Scene<'_>) -> Result<Case<'static>> {
    scene.spc.sh("mkdir /srv/source")?.ok()?;
    let words = ["-t", "fuse.bindfs", "/srv/source"];
    Ok(Case::new("bindfs", &words, "/mnt/made", 3, 1))
}

/// Runs the trials on a host with `spc install` and no container, by the name that mount(8) runs.
/// The daemon is in a client root file system.
fn installed_host(tried: Tried<'_>) {
    with_lab(|lab| {
        let spc = installed(lab)?;
        spc.host.sh("mkdir -p /srv/source /mnt/made")?.ok()?;
        let mut case = Case::new("bindfs, in a client root", &[], "/mnt/made", 3, 1);
        case.mount = "mount.spc /host/srv/source /mnt/made -t spc.fuse.bindfs"
            .split(' ')
            .collect();
        let scene = Scene {
            first: spc.host.pid(),
            entries: entries(&spc.host)?,
            spc,
            serving: false,
        };
        tried(&scene, &case)
    });
}

/// Runs the trials with a disk of the host, in a privileged container.
fn disk(tried: Tried<'_>) {
    with_lab(|lab| {
        let scene = Scene::with(Spc::privileged(lab)?, false)?;
        let device = attach(&scene.spc.host, 8, &["mkfs.ext4", "-q", "-F"])?.device;
        scene.spc.host.sh("mkdir /mnt/disk")?.ok()?;
        let words = ["-t", "ext4", &device];
        tried(&scene, &Case::new("ext4", &words, "/mnt/disk", 0, 0))
    });
}

const BOTH: &[What] = &[What::Mount, What::Unmount];

#[test]
fn a_failing_system_call_is_an_error_or_does_not_matter() {
    contained(|_| Ok(tmpfs()), &each(Extent::Short, BOTH));
}

#[test]
fn a_failing_system_call_with_a_helper() {
    contained(|scene| helper(scene, &[]), &each(Extent::Short, BOTH));
}

#[test]
fn a_failing_system_call_with_a_static_helper() {
    contained(
        |scene| helper(scene, &["-static"]),
        &each(Extent::Short, BOTH),
    );
}

#[test]
fn a_failing_system_call_with_a_daemon() {
    contained(daemon, &each(Extent::Short, BOTH));
}

#[test]
fn two_failing_system_calls_by_the_kernel_alone() {
    contained(|_| Ok(tmpfs()), &pairs(10, BOTH));
}

#[test]
fn two_failing_system_calls_with_a_daemon() {
    contained(daemon, &pairs(8, BOTH));
}

#[test]
fn two_failing_system_calls_while_spc_serve_is_at_work() {
    in_container(true, daemon, &pairs(6, BOTH));
}

#[test]
fn two_failing_system_calls_with_a_disk() {
    disk(&pairs(8, BOTH));
}

#[test]
fn two_failing_system_calls_in_a_client_root() {
    installed_host(&pairs(8, BOTH));
}

#[test]
fn two_failing_system_calls_of_a_repair() {
    contained(repaired, &pairs(8, &[What::Repair]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_mount() {
    contained(|_| Ok(tmpfs()), &each(Extent::All, &[What::Mount]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_an_unmount() {
    contained(|_| Ok(tmpfs()), &each(Extent::All, &[What::Unmount]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_mount_with_a_helper() {
    contained(
        |scene| helper(scene, &[]),
        &each(Extent::All, &[What::Mount]),
    );
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_an_unmount_with_a_helper() {
    contained(
        |scene| helper(scene, &[]),
        &each(Extent::All, &[What::Unmount]),
    );
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_mount_with_a_static_helper() {
    contained(
        |scene| helper(scene, &["-static"]),
        &each(Extent::All, &[What::Mount]),
    );
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_an_unmount_with_a_static_helper() {
    contained(
        |scene| helper(scene, &["-static"]),
        &each(Extent::All, &[What::Unmount]),
    );
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_mount_with_a_daemon() {
    contained(daemon, &each(Extent::All, &[What::Mount]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_an_unmount_with_a_daemon() {
    contained(daemon, &each(Extent::All, &[What::Unmount]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_repair() {
    contained(repaired, &each(Extent::All, &[What::Repair]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_with_a_disk() {
    disk(&each(Extent::All, BOTH));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_a_mount_in_a_client_root() {
    installed_host(&each(Extent::All, &[What::Mount]));
}

#[test]
#[ignore = "long: each errno of each system call"]
fn every_failing_system_call_of_an_unmount_in_a_client_root() {
    installed_host(&each(Extent::All, &[What::Unmount]));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_of_a_mount_by_the_kernel() {
    contained(|_| Ok(tmpfs()), &each(Extent::SlowOrDead, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_with_a_helper() {
    contained(|scene| helper(scene, &[]), &each(Extent::SlowOrDead, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_with_a_daemon() {
    contained(daemon, &each(Extent::SlowOrDead, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_of_a_repair() {
    contained(repaired, &each(Extent::SlowOrDead, &[What::Repair]));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn a_slow_or_dying_system_call_in_a_client_root() {
    installed_host(&each(Extent::SlowOrDead, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_by_the_kernel_alone() {
    contained(|_| Ok(tmpfs()), &pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_with_a_helper() {
    contained(|scene| helper(scene, &[]), &pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_with_a_daemon() {
    contained(daemon, &pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_while_spc_serve_is_at_work() {
    in_container(true, daemon, &pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_with_a_disk() {
    disk(&pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_in_a_client_root() {
    installed_host(&pairs(150, BOTH));
}

#[test]
#[ignore = "long: hundreds of mounts"]
fn many_pairs_of_failing_system_calls_of_a_repair() {
    contained(repaired, &pairs(150, &[What::Repair]));
}
