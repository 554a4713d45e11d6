//! Rows 7 and 11: many mounts at once, and many mounts by spc.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

use super::figures::{Aim, Curve, Line, Number, Series};
use super::stage::{Stage, WAY};
use super::work::{Argv, Side, argv};
use super::{Report, Scale};

/// Directory of the mounts.
const MANY: &str = "/mnt/crowd";

/// Time limit for all mounts by spc together.
const MOUNTS_LIMIT: Duration = Duration::from_secs(240);

fn commands(command: &str, from: usize, to: usize) -> Vec<Argv> {
    (from..to)
        .map(|number| argv(&format!("{command} {MANY}/{number}")))
        .collect()
}

fn directories(stage: &Stage<'_>, count: usize) -> Result<()> {
    let make = format!(
        "mkdir -p {MANY} && cd {MANY} && seq 0 {} | xargs mkdir -p",
        count - 1
    );
    stage.host.sh(&make)?.ok()?;
    Ok(())
}

/// Row 7: a thousand mounts at once.
pub fn at_once(stage: &Stage<'_>, scale: Scale, report: &mut Report) -> Result<()> {
    let host = &stage.host;
    let count = scale.count(1000);
    directories(stage, count)?;
    let spc = commands("/usr/sbin/spc mount -t tmpfs crowd", 0, count);
    // nsenter enters the host from the container. mount(8) is the host's on both sides.
    let enter = "/usr/bin/nsenter --mount=/proc/1/ns/mnt /usr/bin/mount -t tmpfs crowd";
    let nsenter = commands(enter, 0, count);
    let (mut ours, mut theirs, mut off) = (Vec::new(), Vec::new(), Vec::new());
    let (mut failed, mut others_failed, mut output) = (0, 0, String::new());
    let mut grown = Vec::new();
    let umount = [argv("/usr/sbin/spc umount --all")];
    for _ in 0..scale.rounds(3) {
        let before = stage.entries()?;
        let crowd = host.crowd(host.pid(), spc.clone(), count)?;
        grown.push(stage.entries()?.cast_signed() - before.cast_signed());
        ours.push(crowd.time.as_secs_f64());
        failed += crowd.failed;
        output.push_str(&crowd.says);
        let crowd = host.crowd(host.pid(), umount.to_vec(), 1)?;
        ensure!(crowd.failed == 0, "spc umount --all: {}", crowd.says);
        off.push(crowd.time.as_secs_f64());
        let crowd = host.crowd(stage.first, nsenter.clone(), count)?;
        theirs.push(crowd.time.as_secs_f64());
        others_failed += crowd.failed;
        ensure!(others_failed == 0, "nsenter: {}", crowd.says);
        host.clear(MANY, 0, count)?;
    }
    if failed > 0 {
        eprintln!("bench: mounts at once that failed:\n{output}");
    }
    let what = format!("{count} `spc mount` at once");
    let line = Line::new(7, what.clone(), Number::of("s", ours)?).peer(
        format!("{count} `nsenter … mount` at once"),
        Number::of("s", theirs)?,
    );
    report.line(line.aim(Aim::Within {
        peer: 0,
        times: 1.0,
    }));
    let line = Line::new(
        7,
        format!("{what}: failures"),
        Number::one("", failed as f64),
    );
    report.line(line.aim(Aim::Exactly(0.0)));
    let grown = Number::of("", grown.iter().map(|grown| *grown as f64).collect())?;
    let line = Line::new(
        7,
        format!("{what}: entries in all mount tables together"),
        grown,
    );
    report.line(line.aim(Aim::Exactly(count as f64)));
    let what = format!("`spc umount --all` of {count}");
    report.line(Line::new(7, what, Number::of("s", off)?));
    Ok(())
}

/// Memory, time and table entries with a given number of mounts.
struct Sample {
    mounts: usize,
    pair: Number,
    serve: f64,
    ours: f64,
    records: f64,
}

impl Sample {
    fn take(stage: &Stage<'_>, scale: Scale, mounts: usize) -> Result<Self> {
        let side = Side::timed(&[
            &format!("/usr/sbin/spc mount -t tmpfs way {WAY}"),
            &format!("/usr/sbin/spc umount {WAY}"),
        ]);
        let times = stage
            .host
            .turns(stage.host.pid(), scale.runs(40), &[side])?;
        let records = stage.host.sh("du -sk /run/spc | cut -f 1")?.ok()?.text();
        let ours = |name: &str| name == "spc" || name.starts_with("mount.");
        Ok(Self {
            mounts,
            pair: Number::milliseconds(&times[0])?,
            serve: Stage::memory(stage.first).unwrap_or_default(),
            ours: stage.memory_of(ours).0,
            records: records.parse()?,
        })
    }
}

/// Row 6 for mounts by spc, and row 11.
pub fn of_our_own(
    stage: &Stage<'_>,
    scale: Scale,
    wanted: &[u8],
    report: &mut Report,
) -> Result<()> {
    let host = &stage.host;
    let sizes = scale.of(&[0, 1000, 3000, 10_000], &[0, 100]);
    directories(stage, *sizes.last().unwrap_or(&1))?;
    let mut samples: Vec<Sample> = Vec::new();
    let mut took = Vec::new();
    let begun = Instant::now();
    for size in sizes {
        let mut there = samples.last().map_or(0, |sample| sample.mounts);
        while there < *size && begun.elapsed() < MOUNTS_LIMIT {
            let next = (there + 500).min(*size);
            let commands = commands("/usr/sbin/spc mount -t tmpfs crowd", there, next);
            let crowd = host.crowd(host.pid(), commands, report.cores)?;
            ensure!(
                crowd.failed == 0,
                "{} of 500 failed: {}",
                crowd.failed,
                crowd.says
            );
            took.push((next, crowd.time.as_secs_f64() * 1e3 / (next - there) as f64));
            there = next;
        }
        if there < *size {
            report.failed(
                6,
                format!("{there} of {size} mounts of our own after {MOUNTS_LIMIT:?}"),
            );
        }
        samples.push(Sample::take(stage, scale, there)?);
        if there < *size {
            break;
        }
    }
    let made = begun.elapsed().as_secs_f64();
    let off = host.crowd(host.pid(), vec![argv("/usr/sbin/spc umount --all")], 1)?;
    ensure!(off.failed == 0, "spc umount --all: {}", off.says);
    let (Some(none), Some(most)) = (samples.first(), samples.last()) else {
        anyhow::bail!("no samples")
    };
    if wanted.contains(&6) {
        for sample in &samples[1..] {
            let what = format!(
                "`spc mount` + `spc umount` with {} mounts of our own",
                sample.mounts
            );
            let line = Line::new(6, what, sample.pair.clone()).peer("with none", none.pair.clone());
            report.line(line.aim(Aim::Within {
                peer: 0,
                times: 1.2,
            }));
        }
        let what = format!("to make {} mounts, {} at once", most.mounts, report.cores);
        report.line(Line::new(6, what, Number::one("s", made)));
        let what = format!("`spc umount --all` of {}", most.mounts);
        report.line(Line::new(6, what, Number::one("s", off.time.as_secs_f64())));
        report.curves.push(Curve {
            name: "mounts-of-our-own".into(),
            title: "Mounts of a tmpfs by spc mount, with so many of them there".into(),
            across: "mounts that spc made".into(),
            up: "ms".into(),
            series: vec![
                Series {
                    name: "spc mount + spc umount".into(),
                    points: samples
                        .iter()
                        .map(|sample| sample.pair.at(sample.mounts as f64))
                        .collect(),
                },
                Series {
                    name: format!("each of 500, {} at once", report.cores),
                    points: took
                        .iter()
                        .map(|(there, time)| Number::one("ms", *time).at(*there as f64))
                        .collect(),
                },
            ],
        });
    }
    if wanted.contains(&11) {
        memory(none, &samples, report);
    }
    Ok(())
}

fn memory(none: &Sample, samples: &[Sample], report: &mut Report) {
    let kilobytes = |number: f64| Number::one("KiB", number);
    for sample in samples {
        let what = format!("memory of `spc serve`, {} mounts of a tmpfs", sample.mounts);
        let mut line = Line::new(11, what, kilobytes(sample.serve));
        if sample.mounts > 0 {
            let aim = Aim::Within {
                peer: 0,
                times: 1.2,
            };
            line = line.peer("with none", kilobytes(none.serve)).aim(aim);
        }
        report.line(line);
        if sample.mounts > 0 {
            let each = |now: f64, before: f64| kilobytes((now - before) / sample.mounts as f64);
            let what = format!("memory of our processes for each of {}", sample.mounts);
            report.line(Line::new(11, what, each(sample.ours, none.ours)));
            let what = format!("`/run/spc` for each of {}", sample.mounts);
            report.line(Line::new(11, what, each(sample.records, none.records)));
        }
    }
    let points = samples.iter().map(|sample| {
        let number = Number::one("MiB", sample.serve / 1024.0);
        number.at(sample.mounts as f64)
    });
    report.curves.push(Curve {
        name: "memory".into(),
        title: "Memory of spc serve, with so many mounts of a tmpfs".into(),
        across: "mounts that spc made".into(),
        up: "MiB".into(),
        series: vec![Series {
            name: "spc serve".into(),
            points: points.collect(),
        }],
    });
}
