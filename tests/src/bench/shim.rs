//! Rows 1 to 4: cost of the shim for programs that do not mount, its size, and the cost of a
//! redirected call.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

use super::figures::{Aim, Curve, Line, Number, Series, Value};
use super::stage::{Stage, WAY};
use super::work::Side;
use super::{Report, Scale};
use crate::programs::{Libc, library, program};
use crate::{Host, HostOptions, Lab, Root, machine};

/// The alternative to the shim: `tests/fault`, which has three hooks.
const REDHOOK: &str = "a library on redhook and std";

/// Row 1: a program that does nothing, with and without a preloaded library.
pub fn exec(lab: &Lab, scale: Scale, report: &mut Report) -> Result<()> {
    let host = lab.host(HostOptions {
        root: Root::Server,
        ..HostOptions::default()
    })?;
    let libraries = [
        ("an empty C library", empty()?),
        ("the shim", library("spc-shim", "libspc_shim.so")?),
        (REDHOOK, library("spc-fault", "libspc_fault.so")?),
    ];
    host.write("/etc/preload-0", b"")?;
    let preload = |number: usize| {
        let swap = format!("/bin/ln -sf preload-{number} /etc/ld.so.preload");
        Side::timed(&["/bin/true"]).before(&swap)
    };
    let mut sides = vec![preload(0)];
    for (number, (_, file)) in (1..).zip(&libraries) {
        let place = format!("/srv/{number}.so");
        host.copy_in(file, &place)?;
        host.write(format!("/etc/preload-{number}"), place.as_bytes())?;
        sides.push(preload(number));
    }
    let times = host.turns(host.pid(), scale.runs(400), &sides)?;
    let numbers = times
        .iter()
        .map(|times| Number::of("µs", times.iter().map(|time| time * 1e6).collect()))
        .collect::<Result<Vec<_>>>()?;
    let [nothing, empty, shim, redhook] = &numbers[..] else {
        anyhow::bail!("{numbers:?}")
    };
    let line = |what: &str, ours: &Number| {
        Line::new(1, what, ours.clone())
            .peer(libraries[0].0, empty.clone())
            .peer("nothing", nothing.clone())
    };
    let aim = Aim::Within {
        peer: 0,
        times: 1.0,
    };
    report.line(line("exec of /bin/true, the shim in ld.so.preload", shim).aim(aim));
    report.line(line(&format!("the same, {REDHOOK} there"), redhook));
    Ok(())
}

/// Makes a library with one variable.
fn empty() -> Result<PathBuf> {
    program("empty", Libc::Gnu, &["-shared", "-fPIC", "-s"])
}

/// Row 2: the finished library.
pub fn file(report: &mut Report) -> Result<()> {
    let shim = library("spc-shim", "libspc_shim.so")?;
    let size = std::fs::metadata(&shim)?.len();
    let redhook = std::fs::metadata(library("spc-fault", "libspc_fault.so")?)?.len();
    let line = Line::new(2, "size of the shim", Number::one("bytes", size as f64))
        .peer(REDHOOK, Number::one("bytes", redhook as f64));
    report.line(line.aim(Aim::AtMost(16384.0)));
    let needed = needed(&shim)?;
    let line = Line::new(2, "what the shim needs", Value::Text(needed.join(", ")));
    report.line(line);
    let others = needed.iter().filter(|name| *name != "libc.so.6").count();
    let line = Line::new(
        2,
        "libraries it needs besides libc.so.6",
        Number::one("", others as f64),
    );
    report.line(line.aim(Aim::Exactly(0.0)));
    let path = shim.to_string_lossy();
    let symbols = machine::output("readelf", &["--dyn-syms", "--wide", &path])?;
    let imports: Vec<&str> = symbols
        .lines()
        .filter(|line| line.contains(" UND "))
        .filter_map(|line| line.split_whitespace().nth(7)?.split('@').next())
        .collect();
    ensure!(!imports.is_empty(), "no imports: {symbols}");
    let line = Line::new(
        2,
        "symbols the shim imports",
        Number::one("", imports.len() as f64),
    );
    report.line(line);
    let aborts = imports.iter().filter(|name| **name == "abort").count();
    let line = Line::new(2, "`abort` among them", Number::one("", aborts as f64));
    report.line(line.aim(Aim::Exactly(0.0)));
    Ok(())
}

fn needed(library: &Path) -> Result<Vec<String>> {
    let text = machine::output("readelf", &["-d", &library.to_string_lossy()])?;
    let names = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.strip_suffix(']'));
    Ok(names.map(str::to_owned).collect())
}

/// Memory of a caller in MiB, and number of its threads.
type Caller = (u32, u32);

/// Time of a mount in place, by a bare child, and by the shim, in µs.
type Ways<T> = [T; 3];

/// Number of starts of each caller. Placement in memory and on processors differs from start to
/// start.
const PASSES: usize = 8;

/// Rows 3 and 4: one mount(2), in callers of different sizes.
pub fn crossing(stage: &Stage<'_>, scale: Scale, wanted: &[u8], report: &mut Report) -> Result<()> {
    let host = &stage.host;
    host.copy_in(
        program("crossing", Libc::Gnu, &["-pthread"])?,
        "/tmp/crossing",
    )?;
    host.sh("docker cp /tmp/crossing spc:/crossing")?.ok()?;
    let mut callers: Vec<Caller> = vec![(0, 1)];
    if wanted.contains(&4) {
        let sizes = scale.of(&[256, 512, 1024, 2048], &[256]);
        callers.extend(sizes.iter().map(|mib| (*mib, 1)));
        callers.push((0, 8));
    }
    let callers = each(host, scale, callers)?;
    let (_, small) = callers.first().context("no caller")?;
    let [place, bare, shim] = small;
    if wanted.contains(&3) {
        let line = Line::new(
            3,
            "one mount(2) of a tmpfs, carried to the host",
            shim.clone(),
        );
        let line = line
            .peer("a bare CLONE_VM child in C", bare.clone())
            .peer("in place", place.clone());
        report.line(line.aim(Aim::Within {
            peer: 0,
            times: 1.1,
        }));
    }
    if !wanted.contains(&4) {
        return Ok(());
    }
    let names = ["in place", "bare child", "the shim"];
    let series = names.iter().enumerate().map(|(way, name)| Series {
        name: (*name).to_owned(),
        points: callers
            .iter()
            .filter(|((_, threads), _)| *threads == 1)
            .map(|((mib, _), ways)| ways[way].at(f64::from(*mib)))
            .collect(),
    });
    report.curves.push(Curve {
        name: "caller".into(),
        title: "One mount(2) of a tmpfs, in a caller that has so much memory".into(),
        across: "memory of the caller, MiB".into(),
        up: "µs".into(),
        series: series.collect(),
    });
    for ((mib, threads), ways) in &callers[1..] {
        let what = format!("the same from a caller of {mib} MiB, threads: {threads}");
        let line = Line::new(4, what, ways[2].clone()).peer("0 MiB, threads: 1", shim.clone());
        report.line(line.aim(Aim::Within {
            peer: 0,
            times: 1.5,
        }));
    }
    Ok(())
}

/// Runs the callers one after the other, in several passes.
fn each(
    host: &Host<'_>,
    scale: Scale,
    callers: Vec<Caller>,
) -> Result<Vec<(Caller, Ways<Number>)>> {
    let mut times = vec![[const { Vec::new() }; 3]; callers.len()];
    let runs = scale.runs(400).div_ceil(PASSES);
    for _ in 0..PASSES {
        for ((mib, threads), times) in callers.iter().zip(&mut times) {
            let script = format!(
                "docker exec -e SPC_TYPES=tmpfs spc /crossing /proc/1/ns/mnt {WAY} {runs} {mib} {threads}"
            );
            let text = host.sh(&script)?.ok()?.text();
            ensure!(text.lines().count() == times.len(), "{text}");
            for (line, times) in text.lines().zip(times) {
                for number in line.split(' ').skip(1) {
                    times.push(number.parse::<f64>().with_context(|| text.clone())?);
                }
            }
        }
    }
    let numbers = times.into_iter().map(|[place, bare, shim]| {
        let of = |times| Number::of("µs", times);
        anyhow::Ok([of(place)?, of(bare)?, of(shim)?])
    });
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    Ok(callers.into_iter().zip(numbers).collect())
}
