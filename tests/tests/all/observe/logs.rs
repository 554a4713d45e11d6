//! The log: one id from the frontend to the helper and its daemon, and lines in the journal's
//! format.

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Lab, Root, VmOptions};
use serde_json::Value;

use crate::support::{Spc, VmSpc, until, with_gluster, with_lab};

/// Lines of `spc serve` about a request.
fn served(spc: &Spc<'_>, id: &str) -> Result<Vec<String>> {
    let log = spc.host.run(&["docker", "logs", "spc"])?.ok()?.error_text();
    let about = format!("request={id}");
    let lines = log
        .lines()
        .filter(|line| line.split(' ').any(|word| word == about));
    Ok(lines.map(str::to_owned).collect())
}

/// Value of a variable in the environment of a process of the container.
fn variable(spc: &Spc<'_>, process: &str, name: &str) -> Result<String> {
    let script = format!("tr '\\0' '\\n' </proc/{process}/environ | sed -n 's/^{name}=//p'");
    Ok(spc.sh(&script)?.ok()?.text())
}

fn one_id(lab: &Lab, cluster: &Cluster<'_>) -> Result<()> {
    let spc = Spc::minimal(lab)?;
    spc.host.sh("mkdir /mnt/a /mnt/b")?.ok()?;

    // The caller may choose the id. The daemon outlives the container, and another `spc` runs it.
    let source = format!("{}:/vol", cluster.nodes()[0].host().address());
    let mount = format!("SPC_REQUEST=pod-7.x spc mount -v -t glusterfs {source} /mnt/a");
    let given = spc.sh(&mount)?.ok()?;
    let lines = given.error_text();
    ensure!(lines.lines().count() >= 2, "{given}");
    for line in lines.lines() {
        ensure!(line.ends_with(" request=pod-7.x"), "{line}");
    }
    ensure!(
        lines.contains("decision=carried"),
        "the log has a decision of the shim: {lines}"
    );
    let record = spc.record("/mnt/a")?;
    ensure!(record["request"] == "pod-7.x", "{record}");
    let daemon = record["daemon"][0].to_string();
    ensure!(variable(&spc, &daemon, "SPC_REQUEST")? == "pod-7.x");
    until("spc serve logs the mount", || {
        let lines = served(&spc, "pod-7.x")?;
        Ok(lines
            .iter()
            .any(|line| line.contains("mount done target=/mnt/a type=glusterfs seconds=")))
    })?;
    // Later events of the mount have the same id.
    spc.host.run(&["umount", "/mnt/a"])?.ok()?;
    until("spc serve logs the end of the mount", || {
        let lines = served(&spc, "pod-7.x")?;
        Ok(lines
            .iter()
            .any(|line| line.contains("unmounted on the host; record removed")))
    })?;

    // Without an id, spc makes one up. An id that would spoil the log is ignored.
    let mount = "spc mount -v -t fuse.bindfs /srv";
    let mut seen = Vec::new();
    for environment in ["", "SPC_REQUEST='two words' ", "SPC_REQUEST= "] {
        let made = spc.sh(&format!("{environment}{mount} /mnt/b"))?.ok()?;
        let id = spc.record("/mnt/b")?["request"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(
            id.len() == 8 && id.chars().all(|c| c.is_ascii_hexdigit()),
            "{id:?}"
        );
        ensure!(
            made.error_text()
                .lines()
                .all(|line| line.ends_with(&format!(" request={id}"))),
            "{id}: {made}"
        );
        let daemon = spc.record("/mnt/b")?["daemon"][0].to_string();
        ensure!(variable(&spc, &daemon, "SPC_REQUEST")? == id);
        seen.push(id);
        spc.umount("/mnt/b")?;
    }
    seen.dedup();
    ensure!(seen.len() == 3, "{seen:?}");

    // A failure is one line, with its reason and the helper's words, and without secrets.
    let fails = "spc mount -t fuse.bindfs -o no_such_option,password=hunter2 /srv /mnt/b";
    let failed = spc.sh(&format!("SPC_REQUEST=pod-8 {fails}"))?;
    ensure!(!failed.success(), "{failed}");
    let fails = fails.replace(",password=hunter2", "");
    spc.sh(&format!("SPC_REQUEST=pod-9 {fails}"))?.code(32)?;
    until("spc serve logs the failure", || {
        Ok(!served(&spc, "pod-9")?.is_empty())
    })?;
    let lines = served(&spc, "pod-9")?;
    let [line] = &lines[..] else {
        anyhow::bail!("{lines:?}");
    };
    ensure!(
        line.contains(" WARN mount failed: /usr/bin/bindfs failed: exit status 1 target=/mnt/b")
            && line.contains(" reason=helper")
            && line.contains("type=fuse.bindfs"),
        "{line}"
    );
    let all = spc.host.run(&["docker", "logs", "spc"])?.ok()?.error_text();
    ensure!(!all.contains("hunter2"), "{all}");
    spc.is_clean()
}

#[test]
fn one_id_leads_from_the_frontend_to_the_daemon() {
    with_gluster(one_id);
}

fn decisions(lab: &Lab) -> Result<()> {
    let spc = Spc::minimal(lab)?;
    spc.remove()?;
    let run = [
        &["docker", "run", "-d", "--name", "spc"][..],
        &crate::support::MINIMAL,
        &[lab::Base::Trixie.image(), "spc", "serve", "-v"],
    ];
    spc.host.run(&run.concat())?.ok()?;
    spc.host.sh("mkdir /mnt/a")?.ok()?;
    let mount = "SPC_REQUEST=pod-1 spc mount -t fuse.bindfs -o x-spc.container /srv /mnt/a";
    spc.sh(mount)?.ok()?;
    // The daemon unmounts by itself. Its shim logs that long after the command has ended.
    let daemon = spc.record("/mnt/a")?["daemon"][0].to_string();
    spc.exec(&["kill", "-TERM", &daemon])?.ok()?;
    until("the shim's report has the id", || {
        let lines = served(&spc, "pod-1")?;
        Ok(lines
            .iter()
            .any(|line| line.contains("shim: decision=carried call=umount")))
    })?;
    until("the mount is gone", || Ok(spc.is_clean().is_ok()))
}

#[test]
fn the_shims_decisions_have_the_id() {
    with_lab(decisions);
}

/// Entries of a unit in the journal: priority and text.
fn journal(spc: &VmSpc<'_>, unit: &str) -> Result<Vec<(String, String)>> {
    let read = ["journalctl", "--no-pager", "-o", "json", "-u", unit];
    let text = spc.host.run(&read)?.ok()?.text();
    let entries = text.lines().map(serde_json::from_str::<Value>);
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context("not JSON")?;
        let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        if field("SYSLOG_IDENTIFIER") != "systemd" {
            found.push((field("PRIORITY"), field("MESSAGE")));
        }
    }
    Ok(found)
}

fn priorities(lab: &Lab) -> Result<()> {
    let spc = VmSpc::boot(
        lab,
        VmOptions {
            root: Root::Systemd,
            memory: 1024,
            ..VmOptions::default()
        },
    )?;
    spc.host.run(&["mkdir", "/mnt/a", "/mnt/b"])?.ok()?;
    // A service's standard error is the journal, and `spc` in the container's mount namespace
    // inherits it.
    let command = "nsenter -t $$(pidof -s spc) -m -- /usr/bin/spc mount -v -t fuse.bindfs";
    let run = |unit: &str, arguments: &str| {
        let text = format!(
            "[Service]\nType=oneshot\nEnvironment=SPC_REQUEST=unit-1\nExecStart=/bin/sh -c 'exec {command} {arguments}'\n"
        );
        spc.host.write(
            format!("/run/systemd/system/{unit}.service"),
            text.as_bytes(),
        )?;
        spc.host.run(&["systemctl", "daemon-reload"])?.ok()?;
        spc.host.run(&["systemctl", "start", unit])
    };
    run("good", "-o x-spc.container /srv /mnt/a")?.ok()?;
    run("bad", "-o x-spc.container,no_such_option /srv /mnt/b")?.code(1)?;
    for (unit, last) in [("good", "mounted: /srv"), ("bad", "hint: ")] {
        until("the journal has all entries", || {
            let entries = journal(&spc, unit)?;
            Ok(entries.iter().any(|(_, text)| text.contains(last)))
        })?;
    }
    let good = journal(&spc, "good")?;
    let debug: Vec<_> = good
        .iter()
        .filter(|(priority, _)| priority == "7")
        .collect();
    ensure!(debug.len() >= 2, "{good:?}");
    for (_, text) in &debug {
        ensure!(
            text.ends_with(" request=unit-1")
                && !text.starts_with(['<', ' '])
                && !text.contains("DEBUG"),
            "{text}"
        );
    }
    let bad = journal(&spc, "bad")?;
    let error = bad.iter().find(|(_, text)| text.starts_with("spc: "));
    ensure!(
        error.is_some_and(|(priority, _)| priority == "3"),
        "{bad:?}"
    );
    // A daemon that may end with its caller ended with the service.
    until("nothing is left", || Ok(spc.is_clean().is_ok()))
}

#[test]
fn journal_entries_have_priorities() {
    with_lab(priorities);
}
