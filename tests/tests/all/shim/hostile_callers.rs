//! The shim in difficult callers: many threads under constant signals, mass forks, a chroot,
//! constructors, a new PID namespace; and with faults below it.

use anyhow::{Result, ensure};
use lab::{Lab, Libc};

use crate::shim::redirected_calls::Stage;
use crate::support::{MINIMAL, with_lab};

const TYPES: &str = "SPC_TYPES=tmpfs";

fn difficult(lab: &Lab) -> Result<()> {
    let stage = Stage::set(
        lab,
        &MINIMAL,
        &lab::program("call", Libc::Gnu, &["-pthread"])?,
    )?;
    for name in ["threads", "storm", "newpid"] {
        stage.put(
            &lab::program(name, Libc::Gnu, &["-pthread"])?,
            &format!("/{name}"),
        )?;
    }
    let library = lab::program("constructor", Libc::Gnu, &["-shared", "-fPIC"])?;
    stage.put(&library, "/constructor.so")?;
    let run = |words: &[&str]| -> Result<String> {
        let output = stage.spc.exec(&[&["env", TYPES], words].concat())?;
        Ok(format!("{}{}", output.text(), output.error_text())
            .trim_end()
            .replace('\n', ";"))
    };
    let make = |directory: &str| -> Result<()> {
        let script = format!("mkdir -p {directory}");
        stage.spc.host.sh(&script)?.ok()?;
        stage.spc.sh(&script)?.ok()?;
        Ok(())
    };

    let targets: Vec<String> = (0..8).map(|n| format!("/mnt/thread{n}")).collect();
    targets.iter().try_for_each(|target| make(target))?;
    let mut words = vec!["/threads", "tmpfs"];
    words.extend(targets.iter().map(String::as_str));
    let printed = run(&words)?;
    ensure!(
        printed == "mounted 8;elsewhere 0;handled",
        "threads: {printed}"
    );
    for target in &targets {
        ensure!(stage.count(target)? == (1, 0), "{target}");
    }

    let children: Vec<String> = (0..40).map(|n| format!("/mnt/storm/{n}")).collect();
    make("/mnt/storm/own")?;
    make(&children.join(" "))?;
    let printed = run(&["/storm", "40", "tmpfs", "/mnt/storm"])?;
    ensure!(
        printed == "children 40 failures 0 own failures 0",
        "storm: {printed}"
    );
    for target in &children {
        ensure!(stage.count(target)? == (1, 0), "{target}");
    }
    ensure!(stage.count("/mnt/storm/own")? == (0, 0));

    make("/mnt/jailed")?;
    stage.spc.sh("mkdir -p /jail/mnt/jailed")?.ok()?;
    let printed = run(&[
        "/call", "-r", "/jail", "-c", "/mnt", "mount", "src", "jailed", "tmpfs", "0", "NULL",
    ])?;
    ensure!(
        printed == "mount 0 0;state same" && stage.count("/mnt/jailed")? == (1, 0),
        "chroot: {printed}"
    );

    make("/mnt/early")?;
    let printed = run(&[
        "env",
        "CONSTRUCTOR_TYPE=tmpfs",
        "CONSTRUCTOR_TARGET=/mnt/early",
        "LD_PRELOAD=/constructor.so",
        "/bin/true",
    ])?;
    ensure!(
        printed == "constructor 0 0" && stage.count("/mnt/early")? == (1, 0),
        "constructor: {printed}"
    );

    make("/mnt/newpid")?;
    let printed = run(&["/newpid", "ramfs", "/mnt/newpid"])?;
    ensure!(
        printed == "mount 0 0;fork works" && stage.count("/mnt/newpid")? == (0, 1),
        "newpid: {printed}"
    );
    Ok(())
}

#[test]
fn difficult_callers_are_unchanged_by_the_shim() {
    with_lab(difficult);
}

fn faults(lab: &Lab) -> Result<()> {
    let stage = Stage::set(
        lab,
        &MINIMAL,
        &lab::program("call", Libc::Gnu, &["-pthread"])?,
    )?;
    stage.put(&lab::library("spc-fault", "libspc_fault.so")?, "/fault.so")?;
    let mut number = 0;
    let mut case = |fault: &str, words: &str, prints: &str, on_host: usize| -> Result<()> {
        number += 1;
        let top = format!("/mnt/fault{number}");
        stage.directories(&top)?;
        let fault = format!("SPC_FAULT={fault}");
        let words = words.replace('@', &top);
        let mut argv = vec![
            "env",
            TYPES,
            "LD_PRELOAD=/usr/lib/spc/libspc_shim.so /fault.so",
            &fault,
            "/call",
        ];
        argv.extend(words.split(' '));
        let output = stage.spc.exec(&argv)?;
        let printed = output.text().trim_end().replace('\n', ";");
        ensure!(
            printed == format!("{prints};state same"),
            "{fault} {words}: {printed} {}",
            output.error_text()
        );
        ensure!(
            stage.count(&format!("{top}/data"))? == (on_host, 0),
            "{fault} {words}: mounts"
        );
        Ok(())
    };
    // The errno of the real call reaches the caller unchanged.
    for errno in ["1", "5", "12", "16", "19"] {
        case(
            &format!("mount={errno}"),
            "mount src @/data tmpfs 0 NULL",
            &format!("mount -1 {errno}"),
            0,
        )?;
        case(
            &format!("move_mount={errno}"),
            "new tmpfs src @/data",
            &format!("new -1 {errno}"),
            0,
        )?;
        let undone = format!("mount 0 0;umount2 -1 {errno}");
        case(
            &format!("umount2={errno}"),
            "mount src @/data tmpfs 0 NULL , umount2 @/data 0",
            &undone,
            1,
        )?;
    }
    // A call that reports success without a mount is a failure.
    let output = "mount -1 116";
    case("mount=lie", "mount src @/data tmpfs 0 NULL", output, 0)?;
    // A call whose result is unknown, because its process was killed before or after it, is a
    // failure, too.
    for (how, on_host) in [("kill", 0), ("die", 1)] {
        let words = "mount src @/data tmpfs 0 NULL";
        case(&format!("mount={how}"), words, "mount -1 5", on_host)?;
        let words = "new tmpfs src @/data";
        case(&format!("move_mount={how}"), words, "new -1 5", on_host)?;
        case(
            &format!("umount2={how}"),
            "mount src @/data tmpfs 0 NULL , umount2 @/data 0",
            "mount 0 0;umount2 -1 5",
            1 - on_host,
        )?;
    }
    // Faults in the calls before move_mount(2).
    for fault in ["fsopen=24", "fsmount=12"] {
        let errno = fault.split('=').next_back().unwrap_or_default();
        case(fault, "new tmpfs src @/data", &format!("new -1 {errno}"), 0)?;
    }
    case("open_tree=24", "bind @/src @/data", "bind -1 24", 0)?;
    // The shim waits for a slow call.
    case(
        "mount=delay:300",
        "-t 2 mount src @/data tmpfs 0 NULL",
        "mount 0 0",
        1,
    )
}

#[test]
fn faults_below_the_shim_reach_the_caller() {
    with_lab(faults);
}

/// Checks that this shim loads in a root with the C library and nothing else. A shim built on std
/// keeps every program there from starting.
#[test]
fn the_shim_loads_in_a_root_without_libgcc() {
    with_lab(|lab| {
        let stage = Stage::set(
            lab,
            &MINIMAL,
            &lab::program("call", Libc::Gnu, &["-pthread"])?,
        )?;
        stage.put(&lab::library("spc-fault", "libspc_fault.so")?, "/fault.so")?;
        let prepare = "mkdir -p /bare/etc /bare/lib /bare/lib64 /bare/mnt && cp /call /fault.so /usr/lib/spc/libspc_shim.so /bare && \
             cp /lib64/ld-linux-*.so.* /bare/lib64 && cp /lib/*-linux-gnu/libc.so.6 /bare/lib";
        stage.spc.sh(prepare)?.ok()?;
        let start = |library: &str| {
            stage.spc.sh(&format!(
                "echo {library} >/bare/etc/ld.so.preload; chroot /bare /call umount /mnt"
            ))
        };
        let ours = start("/libspc_shim.so")?;
        ensure!(
            ours.text() == "umount -1 22\nstate same" && ours.error_text().is_empty(),
            "{} {}",
            ours.text(),
            ours.error_text()
        );
        let std = start("/fault.so")?.code(127)?;
        ensure!(
            std.error_text().contains("libgcc_s.so.1"),
            "{}",
            std.error_text()
        );
        Ok(())
    });
}
