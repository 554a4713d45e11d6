//! Rows 5 and 6: a mount and its unmount by programs, on a host with few and with many mounts.

use anyhow::Result;

use super::figures::{Aim, Curve, Line, Number, Series};
use super::stage::{Stage, WAY};
use super::work::Side;
use super::{Report, Scale};

/// Directory of the other mounts.
const MANY: &str = "/mnt/many";

/// Returns three programs for a mount and its unmount on a host.
fn on_the_host(stage: &Stage<'_>) -> [Side; 3] {
    let (mount, umount) = (
        format!("/usr/bin/mount -t tmpfs way {WAY}"),
        format!("/usr/bin/umount {WAY}"),
    );
    let enter = stage.enter();
    [
        Side::timed(&[
            &format!("/usr/sbin/spc mount -t tmpfs way {WAY}"),
            &format!("/usr/sbin/spc umount {WAY}"),
        ]),
        Side::timed(&[&format!("{enter} {mount}"), &format!("{enter} {umount}")]),
        Side::timed(&[&mount, &umount]),
    ]
}

/// Row 5.
pub fn pair(stage: &Stage<'_>, scale: Scale, report: &mut Report) -> Result<()> {
    let host = &stage.host;
    let aim = Aim::Within {
        peer: 0,
        times: 1.0,
    };
    let [spc, nsenter, place] = on_the_host(stage);
    let named = Side::timed(&[
        &format!("/usr/bin/mount -t spc.tmpfs way {WAY}"),
        &format!("/usr/bin/umount {WAY}"),
    ]);
    let sides = [spc, named, nsenter, place];
    let times = host.turns(host.pid(), scale.runs(200), &sides)?;
    let [spc, named, nsenter, place] = numbers(&times)?;
    let nsenter_name = "`nsenter … mount` + `nsenter … umount`";
    let place_name = "mount(8) + umount(8) in place";
    for (what, ours) in [
        ("`spc mount` + `spc umount` of a tmpfs, on a host", spc),
        ("`mount -t spc.tmpfs` + `umount`, on a host", named),
    ] {
        let line = Line::new(5, what, ours)
            .peer(nsenter_name, nsenter.clone())
            .peer(place_name, place.clone());
        report.line(line.aim(aim));
    }
    // In the container, nsenter is the alternative.
    let enter = "/usr/bin/nsenter --mount=/proc/1/ns/mnt";
    let sides = [
        Side::timed(&[
            &format!("/usr/bin/spc mount -t tmpfs way {WAY}"),
            &format!("/usr/bin/spc umount {WAY}"),
        ]),
        Side::timed(&[
            &format!("{enter} /usr/bin/mount -t tmpfs way {WAY}"),
            &format!("{enter} /usr/bin/umount {WAY}"),
        ]),
    ];
    let times = host.turns(stage.first, scale.runs(200), &sides)?;
    let [spc, nsenter] = numbers(&times)?;
    let what = "`spc mount` + `spc umount` of a tmpfs, in the container";
    let line = Line::new(5, what, spc).peer(nsenter_name, nsenter);
    report.line(line.aim(aim));
    Ok(())
}

/// Row 6: row 5 with many mounts on the host that spc did not make.
pub fn among_many(stage: &Stage<'_>, scale: Scale, report: &mut Report) -> Result<()> {
    let host = &stage.host;
    let sizes = scale.of(&[0, 1000, 3000, 10_000], &[0, 300]);
    let names = [
        "`spc mount` + `spc umount`",
        "`nsenter … mount` + `nsenter … umount`",
        "mount(8) + umount(8) in place",
    ];
    let mut all: Vec<(usize, [Number; 3])> = Vec::new();
    for size in sizes {
        let there = all.last().map_or(0, |(size, _)| *size);
        host.fill(MANY, there, *size)?;
        let times = host.turns(host.pid(), scale.runs(60), &on_the_host(stage))?;
        all.push((*size, numbers(&times)?));
    }
    let most = all.last().map_or(0, |(size, _)| *size);
    host.clear(MANY, 0, most)?;
    let series = names.iter().enumerate().map(|(way, name)| Series {
        name: name.replace('`', ""),
        points: all
            .iter()
            .map(|(size, numbers)| numbers[way].at(*size as f64))
            .collect(),
    });
    report.curves.push(Curve {
        name: "mounts-on-the-host".into(),
        title: "A mount of a tmpfs and its unmount, on a host that has so many other mounts".into(),
        across: "mounts on the host".into(),
        up: "ms".into(),
        series: series.collect(),
    });
    let none = all[0].1.clone();
    for (size, [spc, nsenter, _]) in &all[1..] {
        let what = format!("{} with {size} other mounts on the host", names[0]);
        let line = Line::new(6, what, spc.clone())
            .peer("with none", none[0].clone())
            .peer(names[1], nsenter.clone());
        report.line(line.aim(Aim::Within {
            peer: 0,
            times: 1.2,
        }));
    }
    Ok(())
}

/// Returns milliseconds of each side.
fn numbers<const N: usize>(times: &[Vec<f64>]) -> Result<[Number; N]> {
    let numbers = times
        .iter()
        .map(|times| Number::milliseconds(times))
        .collect::<Result<Vec<_>>>()?;
    numbers
        .try_into()
        .map_err(|numbers| anyhow::anyhow!("{numbers:?}"))
}
