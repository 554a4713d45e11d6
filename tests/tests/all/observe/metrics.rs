//! `spc serve --metrics`: counters of operations, gauges of current mounts, in a format that
//! Prometheus' own tool accepts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use lab::{Base, Host, HostOptions, Lab, Root};

use crate::support::{MINIMAL, Spc, until, with_lab};

const ADDRESS: &str = "127.0.0.1:9750";

/// Starts the container with these arguments of `spc serve`.
fn serving<'lab>(lab: &'lab Lab, run: &[&str], arguments: &[&str]) -> Result<Spc<'lab>> {
    let spc = Spc::minimal(lab)?;
    again(&spc, run, arguments)?;
    Ok(spc)
}

fn again(spc: &Spc<'_>, run: &[&str], arguments: &[&str]) -> Result<()> {
    spc.remove()?;
    let docker = ["docker", "run", "-d", "--name", "spc"];
    let serve = [Base::Trixie.image(), "spc", "serve"];
    let words = [&docker, run, &serve, arguments].concat();
    spc.host.run(&words)?.ok()?;
    Ok(())
}

/// Reply for a path of the address.
fn get(host: &Host<'_>, path: &str) -> Result<String> {
    let fetch = format!("wget -qO - http://{ADDRESS}{path}");
    Ok(host.sh(&fetch)?.ok()?.text())
}

/// Value of a metric with these labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

fn has(text: &str, metric: &str, wanted: f64) -> Result<()> {
    ensure!(
        value(text, metric) == Some(wanted),
        "{metric} is not {wanted}: {text}"
    );
    Ok(())
}

/// Checks that `promtool` accepts the text and suggests no improvement.
fn is_read_by_prometheus(lab: &Lab, text: &str) -> Result<()> {
    let host = lab.host(HostOptions {
        root: Root::Readers,
        ..HostOptions::default()
    })?;
    let check = host
        .command(&["promtool", "check", "metrics"])?
        .input(format!("{text}\n").as_bytes())?
        .run()?;
    ensure!(check.success() && check.error_text().is_empty(), "{check}");
    // promtool does read it.
    let bad = host
        .command(&["promtool", "check", "metrics"])?
        .input(b"not a metric\n")?
        .run()?;
    ensure!(!bad.success(), "{bad}");
    Ok(())
}

fn counted(lab: &Lab) -> Result<()> {
    let spc = serving(lab, &MINIMAL, &["--metrics", ADDRESS])?;
    until("/healthz is ok", || {
        Ok(spc
            .host
            .sh(&format!("wget -qO - http://{ADDRESS}/healthz"))?
            .text()
            == "ok")
    })?;
    spc.host.sh("mkdir /mnt/a /mnt/b /mnt/c")?.ok()?;
    let bindfs = ["-t", "fuse.bindfs", "/srv"];
    for target in ["/mnt/a", "/mnt/b"] {
        spc.mount(&[&bindfs[..], &[target]].concat())?;
    }
    // The same request again makes no other mount.
    spc.mount(&[&bindfs[..], &["/mnt/a"]].concat())?;
    spc.mount(&["-t", "tmpfs", "none", "/mnt/c"])?;
    spc.umount("/mnt/c")?;

    // Failures, each for a different reason.
    spc.exec(&["spc", "mount", "-t", "tmpfs", "none", "/mnt/a"])?
        .code(32)?;
    spc.exec(
        &[
            &["spc", "mount"],
            &bindfs[..],
            &["-o", "no_such_option", "/mnt/c"],
        ]
        .concat(),
    )?
    .code(32)?;
    spc.put("/usr/local/sbin/mount.slow", b"#!/bin/sh\nsleep 100\n")?;
    let slow = [
        "spc",
        "mount",
        "-t",
        "slow",
        "--timeout",
        "1",
        "-o",
        "x-spc.container",
        "x",
        "/mnt/c",
    ];
    spc.exec(&slow)?.code(32)?;
    let keep = spc
        .host
        .spawn(&["sh", "-c", "cd /mnt/b; echo there >&2; sleep 5"])?;
    until("the holder has started", || {
        Ok(spc
            .host
            .sh("for p in /proc/[0-9]*/cwd; do readlink $p; done | grep -x /mnt/b")?
            .success())
    })?;
    spc.exec(&["spc", "umount", "/mnt/b"])?.code(32)?;
    keep.wait()?;

    let text = get(&spc.host, "/metrics")?;
    has(&text, r#"spc_mounts{kind="fuse",state="ok"}"#, 2.0)?;
    has(&text, r#"spc_mounts{kind="fuse",state="stale"}"#, 0.0)?;
    has(&text, "spc_look_success", 1.0)?;
    has(
        &text,
        r#"spc_mount_duration_seconds_count{kind="fuse"}"#,
        2.0,
    )?;
    has(
        &text,
        r#"spc_mount_duration_seconds_count{kind="tmpfs"}"#,
        1.0,
    )?;
    has(
        &text,
        r#"spc_umount_duration_seconds_count{kind="tmpfs"}"#,
        1.0,
    )?;
    let seconds = value(&text, r#"spc_mount_duration_seconds_sum{kind="fuse"}"#);
    ensure!(
        seconds.is_some_and(|s| s > 0.001 && s < 20.0),
        "{seconds:?}"
    );
    for (operation, kind, reason) in [
        ("mount", "tmpfs", "occupied"),
        ("mount", "fuse", "helper"),
        ("mount", "other", "timeout"),
        ("umount", "fuse", "busy"),
    ] {
        let metric = format!(
            r#"spc_failures_total{{kind="{kind}",operation="{operation}",reason="{reason}"}}"#
        );
        has(&text, &metric, 1.0)?;
    }
    is_read_by_prometheus(lab, &text)?;

    // A dead mount shows to every reader; reading changes nothing.
    let daemon = spc.record("/mnt/b")?["daemon"][0].to_string();
    spc.exec(&["kill", "-STOP", &daemon])?.ok()?;
    until("a mount is reported as hung", || {
        let text = get(&spc.host, "/metrics")?;
        let state = |state: &str| {
            value(
                &text,
                &format!(r#"spc_mounts{{kind="fuse",state="{state}"}}"#),
            )
        };
        Ok(state("hung") == Some(1.0) && state("ok") == Some(1.0))
    })?;
    // The watch loop does not depend on mounts that respond.
    ensure!(get(&spc.host, "/healthz")? == "ok");
    spc.exec(&["kill", "-CONT", &daemon])?.ok()?;
    // The counters of later events do not depend on them either.
    let daemon = spc.record("/mnt/a")?["daemon"][0].to_string();
    spc.exec(&["kill", "-KILL", &daemon])?.ok()?;
    until("the mount is repaired", || {
        let text = get(&spc.host, "/metrics")?;
        Ok(value(&text, r#"spc_repairs_total{kind="fuse"}"#) == Some(1.0))
    })?;
    let unknown = spc.host.sh(&format!("wget -qO - http://{ADDRESS}/other"))?;
    ensure!(!unknown.success(), "{unknown}");
    spc.umount("--all")?;
    spc.is_clean()
}

#[test]
fn metrics_count_operations_and_show_mounts() {
    with_lab(counted);
}

/// Whole reply to a request on the host's socket.
fn ask(host: &Host<'_>, socket: &str, question: &str) -> Result<String> {
    let mut client = UnixStream::connect(format!("/proc/{}/root{socket}", host.pid()))?;
    client.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    client.write_all(question.as_bytes())?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

fn places(lab: &Lab) -> Result<()> {
    // Nothing listens without `--metrics`.
    let spc = Spc::minimal(lab)?;
    let listening = "cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A '";
    let quiet = spc.host.sh(listening)?.text();
    ensure!(quiet == "0", "{quiet}");

    // A socket on the host, where an earlier start left one.
    let socket = "/run/metrics.sock";
    let address = format!("unix:{socket}");
    for _ in 0..2 {
        again(&spc, &MINIMAL, &["--metrics", &address])?;
        until("the socket replies", || {
            let question = "GET /healthz HTTP/1.1\r\n\r\n";
            Ok(ask(&spc.host, socket, question)
                .is_ok_and(|answer| answer.ends_with("\r\n\r\nok\n")))
        })?;
    }
    let mode = spc
        .host
        .run(&["stat", "-c", "%F %a %u", socket])?
        .ok()?
        .text();
    ensure!(mode == "socket 600 0", "{mode}");
    let answer = ask(&spc.host, socket, "GET /metrics HTTP/1.1\r\n\r\n")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    ensure!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    has(body, "spc_look_success", 1.0)?;
    ensure!(spc.host.sh(listening)?.text() == "0");
    // A client that sends nothing delays no other client, and is disconnected.
    let mut silent = UnixStream::connect(format!("/proc/{}/root{socket}", spc.host.pid()))?;
    ask(&spc.host, socket, "GET /healthz HTTP/1.1\r\n\r\n")?;
    silent.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    ensure!(silent.read(&mut [0])? == 0, "the silent client got a reply");

    // A file that is not a socket is not replaced; `spc serve` does the rest of its work.
    spc.host.write("/run/file", b"precious")?;
    again(&spc, &MINIMAL, &["--metrics", "unix:/run/file"])?;
    let reason = "cannot listen on /run/file on the host: ";
    until("the log has the reason", || {
        let log = spc.host.run(&["docker", "logs", "spc"])?.error_text();
        Ok(log.contains(reason) && log.contains("serving"))
    })?;
    ensure!(spc.host.read("/run/file")? == b"precious");

    // Where the host cannot be reached, /healthz reports it.
    let apart: Vec<&str> = MINIMAL
        .into_iter()
        .filter(|word| *word != "--pid=host")
        .collect();
    again(&spc, &apart, &["--metrics", ADDRESS])?;
    until("spc serve replies", || {
        let command = format!("wget -qSO - http://{ADDRESS}/healthz 2>&1");
        Ok(spc
            .host
            .sh(&command)?
            .text()
            .contains("503 Service Unavailable"))
    })?;
    let ask_doctor = |address: &str| spc.exec(&["spc", "doctor", "--serve", address]);
    let unhealthy = ask_doctor(ADDRESS)?.code(2)?;
    ensure!(unhealthy.text().contains("is not healthy"), "{unhealthy}");

    // Several addresses, each of which answers health checks.
    again(
        &spc,
        &MINIMAL,
        &["--metrics", &address, "--metrics", ADDRESS],
    )?;
    for address in [&address, ADDRESS] {
        until(
            "spc serve is healthy",
            || Ok(ask_doctor(address)?.success()),
        )?;
    }
    let nobody = ask_doctor("unix:/run/nobody.sock")?.code(2)?;
    ensure!(nobody.text().contains("does not answer"), "{nobody}");

    for bad in ["0.0.0.0:9750", "unix:run/x", "9750"] {
        let refused = spc.exec(&["spc", "serve", "--metrics", bad])?.code(1)?;
        ensure!(refused.error_text().contains(bad), "{refused}");
    }
    Ok(())
}

#[test]
fn metrics_are_served_only_at_the_given_address() {
    with_lab(places);
}
