//! Routes: mounts of helpers reach the host with the shim and without it.

use std::fs;

use anyhow::ensure;
use lab::{Base, Engine, Libc, Propagation, program};

use crate::support::{PRIVILEGED, Spc, with_container, with_lab};

/// Path of musl's dynamic loader.
fn musl_loader() -> String {
    format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH)
}

#[test]
fn a_helper_of_any_make_mounts_on_the_host() {
    // Name, libc, arguments of the compiler, and route.
    const HELPERS: [(&str, Libc, &[&str], &str); 8] = [
        ("plain", Libc::Gnu, &[], "preload"),
        ("clear", Libc::Gnu, &["-DCLEAR"], "preload"),
        ("raw", Libc::Gnu, &["-DRAW"], "graft"),
        ("static", Libc::Gnu, &["-static"], "graft"),
        (
            "raw, static, clear",
            Libc::Gnu,
            &["-static", "-DRAW", "-DCLEAR"],
            "graft",
        ),
        ("musl", Libc::Musl, &[], "preload"),
        ("musl, clear", Libc::Musl, &["-DCLEAR"], "graft"),
        ("musl, static", Libc::Musl, &["-static"], "graft"),
    ];
    with_container(|spc| {
        spc.put(&musl_loader(), &fs::read(musl_loader())?)?;
        for (name, libc, arguments, route) in HELPERS {
            let helper = program("helper", libc, arguments)?;
            spc.put("/usr/local/sbin/mount.ramfs", &fs::read(helper)?)?;
            let mount = ["-t", "ramfs", "-o", "size=1m", name];
            spc.life(&mount, "/mnt/made", ["ramfs", name], |record| {
                ensure!(record["route"] == route, "{name}: {record}");
                spc.host.write("/mnt/made/file", name.as_bytes())?;
                ensure!(spc.host.read("/mnt/made/file")? == name.as_bytes());
                // Both routes give the same record, except for numbers and the route itself.
                let expected = serde_json::json!({
                    "target": "/mnt/made", "written": "/mnt/made", "source": name, "type": "ramfs",
                    "state": "ok", "daemon": [], "age_seconds": record["age_seconds"],
                    "route": route, "mount_id": record["mount_id"], "options": "size=1m",
                    "request": record["request"], "root": null,
                });
                ensure!(*record == expected, "{record}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn the_user_may_insist_on_a_route() {
    with_lab(|lab| {
        let spc = Spc::start(
            lab,
            Propagation::Private,
            Engine::Docker,
            Base::Trixie,
            &PRIVILEGED,
        )?;
        let install = |arguments: &[&str]| {
            let helper = program("helper", Libc::Gnu, arguments)?;
            spc.put("/usr/local/sbin/mount.ramfs", &fs::read(helper)?)
        };
        install(&[])?;
        let mount = ["--route", "graft", "-t", "ramfs", "grafted"];
        spc.life(&mount, "/mnt/made", ["ramfs", "grafted"], |record| {
            ensure!(record["route"] == "graft", "{record}");
            Ok(())
        })?;
        install(&["-DRAW"])?;
        let mount = ["--route", "preload", "-t", "ramfs", "x", "/mnt/made"];
        spc.refused_mount(
            &mount,
            32,
            &[
                "the preload did not intercept its mount(2)",
                "--route preload",
            ],
        )?;
        Ok(())
    });
}

#[test]
fn a_helper_that_waits_for_its_own_mount_sees_it() {
    with_container(|spc| {
        let helper = r#"#!/bin/sh
            bindfs "$1" "$2" -o subtype=waits || exit 1
            until grep -q " $2 .* fuse.waits " /proc/self/mountinfo; do sleep 0.1; done"#;
        spc.put("/usr/local/sbin/mount.waits", helper.as_bytes())?;
        spc.host
            .sh("mkdir -p /srv/w && echo x >/srv/w/file")?
            .ok()?;
        let mount = ["-t", "waits", "--timeout", "30", "/host/srv/w"];
        spc.life(&mount, "/mnt/w", ["fuse.waits", "/host/srv/w"], |record| {
            ensure!(record["route"] == "preload", "{record}");
            ensure!(spc.host.read("/mnt/w/file")? == b"x\n");
            Ok(())
        })
    });
}
