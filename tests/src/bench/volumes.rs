//! Rows 8 to 10, and GlusterFS's part of 7 and 11: real volumes, compared with the native client on
//! a host.

use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::figures::{Aim, Line, Number, Value};
use super::stage::{Stage, WAY};
use super::work::{Side, argv};
use super::{Report, Scale, fio};
use crate::{Cluster, Conduct, Host, HostOptions, Lab, Root};

/// File that is read.
const FILE: &str = "first";

/// Port of glusterd.
const PORT: u16 = 24007;

/// Time limit in seconds for a mount's search for a live server.
const MOUNT_TIMEOUT: u64 = 60;

/// Time limit in seconds for all mounts of a kind by one client.
const MOUNTS_LIMIT: f64 = 30.0;

/// Servers, a host with the container, and hosts with the native client.
struct Scene<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    stage: Stage<'lab>,
    native: Host<'lab>,
    /// A second host with the native client, for figures that are also compared with themselves.
    another: Host<'lab>,
}

/// Measures all rows that need servers.
pub fn rows(lab: &Lab, scale: Scale, wanted: &[u8], report: &mut Report) -> Result<()> {
    let cluster = lab.gluster()?;
    cluster.create_volume("vol")?;
    let native = || {
        let host = lab.host(HostOptions {
            root: Root::Server,
            ..HostOptions::default()
        })?;
        host.sh(&format!("mkdir {WAY}"))?.ok()?;
        anyhow::Ok(host)
    };
    let scene = Scene {
        cluster: &cluster,
        stage: Stage::new(lab)?,
        native: native()?,
        another: native()?,
    };
    // The first mount of a type also copies the client programs to the host.
    scene.mounted(|| Ok(()))?;
    let one = |row: u8| -> Vec<u8> { wanted.iter().copied().filter(|one| *one == row).collect() };
    report.part(&one(8), |report| scene.first_byte(scale, report));
    report.part(&one(9), |report| scene.servers_down(lab, scale, report));
    report.part(&one(10), |report| {
        let hosts = scene.hosts();
        hosts.into_iter().try_for_each(fio::bring)?;
        fio::rows(hosts, &scene.source(), scale, report)
    });
    let crowd: Vec<u8> = wanted
        .iter()
        .copied()
        .filter(|row| [7, 11].contains(row))
        .collect();
    report.part(&crowd, |report| scene.crowd(scale, &crowd, report));
    Ok(())
}

impl Scene<'_, '_> {
    fn source(&self) -> String {
        format!("{}:/vol", self.cluster.nodes()[0].host().address())
    }

    /// Returns all clients.
    fn hosts(&self) -> [&Host<'_>; 3] {
        [&self.stage.host, &self.native, &self.another]
    }

    /// Mounts the volume on all hosts, runs `with`, and unmounts.
    fn mounted(&self, with: impl FnOnce() -> Result<()>) -> Result<()> {
        let source = self.source();
        let mount = format!("mount -t glusterfs {source} {WAY} && echo text >{WAY}/{FILE}");
        for host in self.hosts() {
            host.sh(&mount)?.ok()?;
        }
        let done = with();
        for host in self.hosts() {
            host.sh(&format!("umount {WAY}"))?.ok()?;
        }
        done
    }

    /// Runs the same commands on both hosts, alternating.
    fn both(&self, runs: usize, side: &Side) -> Result<[Vec<f64>; 2]> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let hosts = [(&self.stage.host, &mut ours), (&self.native, &mut theirs)];
            for (host, times) in hosts {
                let once = host.turns(host.pid(), 1, std::slice::from_ref(side))?;
                times.extend(once.into_iter().flatten());
            }
        }
        Ok([ours, theirs])
    }

    /// Row 8.
    fn first_byte(&self, scale: Scale, report: &mut Report) -> Result<()> {
        let mount = format!("/usr/bin/mount -t glusterfs {} {WAY}", self.source());
        let side = Side::timed(&[&mount, &format!("/usr/bin/head -c 1 {WAY}/{FILE}")]);
        let side = side.after(&format!("/usr/bin/umount {WAY}"));
        let [ours, theirs] = self.both(scale.runs(25), &side)?;
        let what = "`mount -t glusterfs` to the first byte read";
        let line = Line::new(8, what, Number::milliseconds(&ours)?)
            .peer("the native client", Number::milliseconds(&theirs)?);
        report.line(line.aim(Aim::Within {
            peer: 0,
            times: 1.05,
        }));
        Ok(())
    }

    /// Row 9: a volume on one server, whose description all three servers have.
    fn servers_down(&self, lab: &Lab, scale: Scale, report: &mut Report) -> Result<()> {
        let node = &self.cluster.nodes()[2];
        let address = node.host().address();
        let brick = format!("{address}:{}", node.brick("single").display());
        for words in [
            &["create", "single", &brick, "force"][..],
            &["start", "single"],
        ] {
            let volume = ["gluster", "--mode=script", "volume"];
            node.host().run(&[&volume, words].concat())?.ok()?;
        }
        let real = Conduct::Serves(SocketAddrV4::new(address, PORT));
        let faulty = lab.faulty()?;
        let servers = [real; 3].map(|conduct| faulty.server(PORT, conduct));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let addresses: Vec<Ipv4Addr> = servers.iter().map(|server| server.address()).collect();
        let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let ours = format!(
            "/usr/bin/busybox timeout {MOUNT_TIMEOUT} /usr/sbin/spc mount -t glusterfs -o x-spc.order=given {}:/single {WAY}",
            listed.join(",")
        );
        let theirs = format!(
            "/usr/bin/busybox timeout {MOUNT_TIMEOUT} /usr/bin/mount -t glusterfs -o backup-volfile-servers={}:{} {}:/single {WAY}",
            listed[1], listed[2], listed[0]
        );
        // Each run is a first mount, so the cache of dead servers is removed before it.
        let clear_cache = "/usr/bin/busybox rm -rf /run/spc/dead";
        let after = format!("/usr/bin/umount {WAY}");
        let ours = Side::timed(&[&ours]).before(clear_cache).after(&after);
        let theirs = Side::timed(&[&theirs]).after(&after);
        let mut healthy: Option<Value> = None;
        for (name, conduct) in [
            ("all three healthy", real),
            ("the first two refuse", Conduct::Refuses),
            ("the first two drop what is sent", Conduct::Drops),
        ] {
            for server in &servers[..2] {
                server.turn(conduct)?;
            }
            let (mut spc, mut native) = (Tries::default(), Tries::default());
            for _ in 0..scale.runs(12) {
                spc.mount(&self.stage.host, &ours);
                native.mount(&self.native, &theirs);
            }
            let value = spc.value()?;
            let what = format!("`spc mount` of a volume, three servers: {name}");
            let mut line = Line::new(9, what, value.clone());
            if let Some(healthy) = &healthy {
                line = line.peer("all three healthy", healthy.clone());
                line = line.aim(Aim::Within {
                    peer: 0,
                    times: 1.5,
                });
            }
            let line = line.peer(
                "mount.glusterfs with backup-volfile-servers",
                native.value()?,
            );
            report.line(line);
            healthy.get_or_insert(value);
        }
        // A client that timed out leaves its daemon behind.
        let end = format!("busybox killall -9 glusterfs; umount -l {WAY}; true");
        self.native.sh(&end)?.ok()?;
        Ok(())
    }

    /// Rows 7 and 11: many mounts of one volume at once.
    fn crowd(&self, scale: Scale, wanted: &[u8], report: &mut Report) -> Result<()> {
        let count = scale.count(200);
        let directory = "/mnt/volumes";
        let all = |command: &str| {
            let numbers = 0..count;
            numbers
                .map(|number| argv(&format!("{command} {directory}/{number}")))
                .collect::<Vec<_>>()
        };
        let make = format!(
            "mkdir -p {directory} && cd {directory} && seq 0 {} | xargs mkdir",
            count - 1
        );
        let source = self.source();
        let mount = all(&format!("/usr/bin/mount -t glusterfs {source}"));
        let mut times = Vec::new();
        let mut memory = Vec::new();
        let ours = |name: &str| name == "spc" || name.starts_with("mount.");
        let helpers = |name: &str| name.starts_with("gluster");
        for (host, is_ours) in [(&self.stage.host, true), (&self.native, false)] {
            host.sh(&make)?.ok()?;
            let before = self.stage.entries()?;
            let own = self.stage.memory_of(ours).0;
            let crowd = host.crowd(host.pid(), mount.clone(), count)?;
            if !is_ours {
                ensure!(crowd.failed == 0, "the native client: {}", crowd.says);
            }
            times.push(Number::one("s", crowd.time.as_secs_f64()));
            if is_ours {
                let grown = self.stage.entries()?.cast_signed() - before.cast_signed();
                let of_ours = (self.stage.memory_of(ours).0 - own) / count as f64;
                memory.push(Number::one("KiB", of_ours));
                let (daemons, number) = self.stage.memory_of(helpers);
                memory.push(Number::one("KiB", daemons / number.max(1) as f64));
                let what = format!("{count} volumes mounted at once");
                if wanted.contains(&7) {
                    if crowd.failed > 0 {
                        eprintln!("bench: volumes at once that failed:\n{}", crowd.says);
                    }
                    let failures = Number::one("", crowd.failed as f64);
                    let line = Line::new(7, format!("{what}: failures"), failures);
                    report.line(line.aim(Aim::Exactly(0.0)));
                    let entries = Number::one("", grown as f64);
                    let what = format!("{what}: entries in all mount tables together");
                    let line = Line::new(7, what, entries);
                    report.line(line.aim(Aim::Exactly(count as f64)));
                }
            }
            let off = all("/usr/bin/umount");
            let off = host.crowd(host.pid(), off, report.cores)?;
            ensure!(off.failed == 0, "umount: {}", off.says);
        }
        if wanted.contains(&7) {
            let what = format!("{count} `mount -t glusterfs` of one volume at once");
            let line = Line::new(7, what, times[0].clone());
            report.line(line.peer("the native client", times[1].clone()));
        }
        if wanted.contains(&11) {
            let what = format!("memory of our processes for each of {count} volumes");
            report
                .line(Line::new(11, what, memory[0].clone()).peer("its daemon", memory[1].clone()));
        }
        Ok(())
    }
}

/// Outcomes of a client's mounts while servers are down.
#[derive(Default)]
struct Tries {
    times: Vec<f64>,
    failure: Option<String>,
}

impl Tries {
    /// Mounts again, unless the last attempt failed or the time limit is over: a mount that fails
    /// takes minutes.
    fn mount(&mut self, host: &Host<'_>, side: &Side) {
        if self.failure.is_some() || self.times.iter().sum::<f64>() > MOUNTS_LIMIT {
            return;
        }
        match host.turns(host.pid(), 1, std::slice::from_ref(side)) {
            Ok(once) => self.times.extend(once.into_iter().flatten()),
            Err(error) => self.failure = Some(format!("{error:#}")),
        }
    }

    fn value(self) -> Result<Value> {
        match self.failure {
            None => Ok(Number::milliseconds(&self.times)?.into()),
            // timeout(1) kills with SIGTERM.
            Some(error) if error.contains("SIGTERM") || error.contains("143") => {
                Ok(Value::Text(format!("more than {MOUNT_TIMEOUT} s")))
            }
            Some(error) => {
                eprintln!("bench: with servers down: {error}");
                Ok(Value::Text("fails".into()))
            }
        }
    }
}
