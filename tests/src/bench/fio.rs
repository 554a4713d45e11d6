//! Row 10: file access on a mount.

use anyhow::{Context, Result};
use serde_json::Value as Json;
use std::ffi::OsStr;
use std::path::Path;

use super::figures::{Aim, Line, Number};
use super::stage::WAY;
use super::{Report, Scale};
use crate::programs::{Libc, program};
use crate::{Host, machine};

/// Directory of the programs on a host.
const PLACE: &str = "/srv/fio";

/// Copies fio of the machine, its libraries and the metadata loop to a host.
pub fn bring(host: &Host<'_>) -> Result<()> {
    let fio = "/usr/bin/fio";
    let listed = machine::output("ldd", &[fio])?;
    let words = listed.split_whitespace();
    let libraries = words.filter(|word| word.starts_with('/') && !word.ends_with(':'));
    for file in libraries.chain([fio]) {
        let name = Path::new(file).file_name().and_then(OsStr::to_str);
        host.copy_in(file, format!("{PLACE}/{}", name.context("no name")?))?;
    }
    let metadata = program("metadata", Libc::Gnu, &["-static"])?;
    host.copy_in(metadata, format!("{PLACE}/metadata"))
}

/// Jobs of fio, and the number of each that counts.
const JOBS: [(&str, &str, &str, &str, f64); 2] = [
    (
        "fio: 256 MiB written in order, flushed",
        "--rw=write --bs=1M --size=256M --end_fsync=1",
        "/jobs/0/write/bw_bytes",
        "MB/s",
        1e6,
    ),
    (
        "fio: blocks of 4 KiB read at random, past the cache",
        "--rw=randread --bs=4k --size=64M --direct=1 --time_based --runtime=1",
        "/jobs/0/read/iops",
        "per s",
        1.0,
    ),
];

/// Number of files that the metadata loop creates, stats, renames and removes.
const FILES: usize = 200;

/// Number of measurements per host, each on a new mount. Some daemons are a little faster than
/// others for as long as they run.
const ROUNDS: usize = 9;

/// Runs fio on a mount by spc and on mounts of two hosts with the native client. The difference of
/// those two shows the noise.
pub fn rows(hosts: [&Host<'_>; 3], source: &str, scale: Scale, report: &mut Report) -> Result<()> {
    let on_mount = |host: &Host<'_>, command: &str| {
        let mount = format!("mount -t glusterfs {source} {WAY} || exit");
        let script = format!("{mount}; {command}; code=$?; umount {WAY} && exit $code");
        host.sh(&script)?.ok()
    };
    let fio = format!(
        "{PLACE}/ld-linux-x86-64.so.2 --library-path {PLACE} {PLACE}/fio --name=bench --output-format=json"
    );
    for (what, job, pointer, unit, divisor) in JOBS {
        let run = |host: &Host<'_>, name: &str| {
            let output = on_mount(host, &format!("{fio} --filename={WAY}/{name} {job}"))?;
            let answer: Json = serde_json::from_slice(&output.stdout).context("fio's answer")?;
            let number = answer.pointer(pointer).and_then(Json::as_f64);
            Ok(number.context("fio lacks a number")? / divisor)
        };
        line(hosts, scale, what, unit, run, report)?;
    }
    let run = |host: &Host<'_>, name: &str| {
        let command = format!("{PLACE}/metadata {WAY}/{name}-files {FILES}");
        let text = on_mount(host, &command)?.text();
        text.trim().parse().context("the metadata loop's answer")
    };
    let what = "metadata loop: files made, looked at, renamed and removed";
    line(hosts, scale, what, "per s", run, report)
}

fn line(
    hosts: [&Host<'_>; 3],
    scale: Scale,
    what: &str,
    unit: &str,
    run: impl Fn(&Host<'_>, &str) -> Result<f64>,
    report: &mut Report,
) -> Result<()> {
    let mut numbers = [const { Vec::new() }; 3];
    for round in 0..scale.rounds(ROUNDS) {
        // Each host is the first one equally often.
        for side in (0..3).map(|side| (side + round) % 3) {
            numbers[side].push(run(hosts[side], ["ours", "theirs", "another"][side])?);
        }
    }
    let [ours, theirs, another] = numbers;
    let line = Line::new(10, what, Number::of(unit, ours)?)
        .peer("a mount by the native client", Number::of(unit, theirs)?)
        .peer(
            "another mount by the native client",
            Number::of(unit, another)?,
        );
    // 1.00, less the difference of two equal hosts on this machine.
    report.line(line.aim(Aim::Reaches {
        peer: 0,
        times: 0.95,
    }));
    Ok(())
}
