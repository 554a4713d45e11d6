//! docs/metrics.md: its commands and its alerts, run as printed.

use anyhow::{Context, Result, ensure};
use lab::{Base, Host, HostOptions, Lab, Root};

use crate::support::{MINIMAL, Spc, until, with_lab};

const PAGE: &str = include_str!("../../../../docs/metrics.md");

/// Input of promtool's rule test: one sample per minute, and the alerts expected from it.
const EXPECTED: &str = r#"
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'spc_mounts{kind="nfs",state="hung",instance="a"}'
        values: '0 0 1x9'
      - series: 'spc_mounts{kind="nfs",state="ok",instance="a"}'
        values: '1x11'
      - series: 'spc_failures_total{kind="nfs",operation="mount",reason="timeout",instance="a"}'
        values: '0 0 2 4 6 6x7'
      - series: 'spc_failures_total{kind="ceph",operation="mount",reason="helper",instance="a"}'
        values: '1 2 3 3x9'
      - series: 'spc_look_success{instance="a"}'
        values: '1 1 1 0 0 0x7'
    alert_rule_test:
      - {alertname: SpcMountNotOk, eval_time: 6m, exp_alerts: []}
      - alertname: SpcMountNotOk
        eval_time: 8m
        exp_alerts:
          - exp_labels: {kind: nfs, state: hung, instance: a}
            exp_annotations: {summary: '1 mounts of nfs are hung: spc ls'}
      - {alertname: SpcFailures, eval_time: 1m, exp_alerts: []}
      - alertname: SpcFailures
        eval_time: 8m
        exp_alerts:
          - exp_labels: {kind: nfs, operation: mount, reason: timeout, instance: a}
            exp_annotations: {summary: 'mount of nfs fails: timeout; the log says what and why'}
      - {alertname: SpcBlind, eval_time: 4m, exp_alerts: []}
      - alertname: SpcBlind
        eval_time: 6m
        exp_alerts:
          - exp_labels: {instance: a}
            exp_annotations: {summary: 'spc cannot look at the mounts of a: docker logs spc'}
"#;

/// Fenced block of the page that begins with these words.
fn block(begins: &str) -> Result<&'static str> {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let texts = blocks.filter_map(|block| Some(block.split_once('\n')?.1));
    let mut found = texts.filter(|text| text.starts_with(begins));
    let block = found
        .next()
        .with_context(|| format!("no {begins} on the page"))?;
    ensure!(found.next().is_none(), "there are two");
    Ok(block)
}

fn readers(lab: &Lab) -> Result<Host<'_>> {
    lab.host(HostOptions {
        root: Root::Readers,
        ..HostOptions::default()
    })
}

#[test]
fn documented_alerts_fire_when_they_should() {
    with_lab(|lab| {
        let host = readers(lab)?;
        let promtool = |words: &str| host.sh(&format!("cd /tmp && promtool {words}"));
        host.write("/tmp/rules.yaml", block("groups:")?.as_bytes())?;
        let checked = promtool("check rules rules.yaml")?.ok()?.text();
        ensure!(checked.contains("3 rules found"), "{checked}");
        host.write("/tmp/test.yaml", EXPECTED.as_bytes())?;
        promtool("test rules test.yaml")?.ok()?;
        // promtool does evaluate the rules.
        let wrong = EXPECTED.replace("state: hung", "state: stale");
        host.write("/tmp/test.yaml", wrong.as_bytes())?;
        let failed = promtool("test rules test.yaml")?;
        ensure!(!failed.success(), "{failed}");
        Ok(())
    });
}

/// Copies curl and its libraries to a host without it, from a host with it.
fn give_curl(to: &Host<'_>, from: &Host<'_>) -> Result<()> {
    let pack = r#"
        files=$(ldd /usr/bin/curl | sed -n 's|.*[ \t]\(/[^ ]*\) (.*|\1|p')
        mkdir /tmp/curl && cp -L /usr/bin/curl $files /tmp/curl && cd /tmp/curl && mv ld-linux-* ld.so && tar -cf /tmp/curl.tar ."#;
    from.sh(pack)?.ok()?;
    to.write("/srv/curl.tar", &from.read("/tmp/curl.tar")?)?;
    to.write(
        "/usr/bin/curl",
        b"#!/bin/sh\nexec /srv/curl/ld.so --library-path /srv/curl /srv/curl/curl \"$@\"\n",
    )?;
    let unpack = "mkdir /srv/curl && tar -xf /srv/curl.tar -C /srv/curl && chmod 755 /usr/bin/curl";
    to.sh(unpack)?.ok().map(drop)
}

#[test]
fn documented_commands_show_the_metrics() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        give_curl(&spc.host, &readers(lab)?)?;
        let lines = block("host# curl")?.lines();
        let commands: Vec<_> = lines
            .filter_map(|line| line.strip_prefix("host# "))
            .collect();
        ensure!(commands.len() == 2, "{commands:?}");
        for (address, command) in ["127.0.0.1:9750", "unix:/run/metrics.sock"]
            .into_iter()
            .zip(commands)
        {
            spc.remove()?;
            let docker = ["docker", "run", "-d", "--name", "spc"];
            let serve = [Base::Trixie.image(), "spc", "serve", "--metrics", address];
            spc.host
                .run(&[&docker, &MINIMAL[..], &serve].concat())?
                .ok()?;
            until(command, || {
                Ok(spc
                    .host
                    .sh(command)?
                    .text()
                    .contains("\nspc_look_success 1"))
            })?;
        }
        Ok(())
    });
}
