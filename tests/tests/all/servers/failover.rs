//! Several servers of GlusterFS, some of which fail.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Conduct, Faulty, FaultyServer, Lab, Output};
use serde_json::Value;

use crate::repair::dead_daemons::{is_repaired, kill, only};
use crate::support::{Spc, until, with_gluster};

const PORT: u16 = 24007;

/// Bytes of the start of glusterd's replies: the reply to a probe, and part of a reply to a client.
const FEW: u32 = 100;

/// A host with the container, a real cluster, and a host for faulty servers.
struct Scene<'a> {
    spc: Spc<'a>,
    cluster: &'a Cluster<'a>,
    faulty: Faulty<'a>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Result<Self> {
        let (spc, faulty) = (Spc::minimal(lab)?, lab.faulty()?);
        spc.host.sh("mkdir /mnt/data /mnt/other")?.ok()?;
        Ok(Self {
            spc,
            cluster,
            faulty,
        })
    }

    /// Addresses of the real servers.
    fn real(&self) -> Vec<Ipv4Addr> {
        let nodes = self.cluster.nodes().iter();
        nodes.map(|node| node.host().address()).collect()
    }

    /// Real server that a faulty one forwards to.
    fn behind(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.real()[0], PORT)
    }

    fn faulty(&self, conducts: &[Conduct]) -> Result<Vec<FaultyServer<'_>>> {
        let servers = conducts.iter();
        servers
            .map(|conduct| self.faulty.server(PORT, *conduct))
            .collect()
    }

    /// Runs `spc mount` of the volume with these servers.
    fn mount(&self, options: &str, servers: &[Ipv4Addr], target: &str) -> Result<Output> {
        let source = source(servers);
        let words = ["spc", "mount", "-t", "glusterfs", "-o", options, &source];
        self.spc.exec(&[&words[..], &[target]].concat())
    }

    /// Servers that the daemon got as arguments, in order.
    fn given(&self) -> Result<Vec<String>> {
        let daemons =
            "for p in $(busybox pidof glusterfs); do tr '\\0' '\\n' </proc/$p/cmdline; done";
        let text = self.spc.host.sh(daemons)?.text();
        let words = text.lines();
        let given = words.filter_map(|word| word.strip_prefix("--volfile-server="));
        Ok(given.map(str::to_owned).collect())
    }

    /// Checks the mount and its files, and unmounts. Returns how long the mount took.
    fn used(&self, mounted: Output, target: &str) -> Result<Duration> {
        let mounted = mounted.ok()?;
        ensure!(self.spc.on(target)?.len() == 1, "{mounted}");
        let own = format!("failover-{}", self.spc.host.name());
        let (name, text) = (format!("{target}/{own}"), format!("{mounted}"));
        self.spc.host.write(&name, text.as_bytes())?;
        let brick = self.cluster.nodes()[0].brick("vol").join(own);
        until("the brick has the file", || {
            let held = self.cluster.nodes()[0].host().read(&brick);
            Ok(held.is_ok_and(|held| held == text.as_bytes()))
        })?;
        self.spc.umount(target)?;
        Ok(mounted.elapsed)
    }

    /// Server lines in the output of `spc explain`.
    fn explained(&self, options: &str, source: &str) -> Result<Vec<String>> {
        let words = [
            "spc",
            "explain",
            "--json",
            "-t",
            "glusterfs",
            "-o",
            options,
            source,
        ];
        let text = self
            .spc
            .exec(&[&words[..], &["/mnt/data"]].concat())?
            .ok()?
            .text();
        let plan: Value = serde_json::from_str(&text)?;
        let servers = plan["servers"].as_array().context("no servers")?;
        let probed = servers
            .iter()
            .filter_map(|server| server["asked_at"].as_str());
        Ok(probed.map(str::to_owned).collect())
    }
}

/// Longest time until a server that responded and then hangs is abandoned for another.
fn lost(conducts: &[Conduct]) -> Duration {
    let hangs = |conduct: &&Conduct| matches!(conduct, Conduct::Hangs(..));
    let count = conducts.iter().filter(hangs).count();
    Duration::from_secs(8) * u32::try_from(count).unwrap_or(u32::MAX)
}

fn source(servers: &[Ipv4Addr]) -> String {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    format!("{}:/vol", servers.join(","))
}

fn addresses(servers: &[FaultyServer<'_>]) -> Vec<Ipv4Addr> {
    servers.iter().map(FaultyServer::address).collect()
}

#[test]
fn dead_glusterfs_servers_hardly_delay_a_mount() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let behind = scene.behind();
        let given = "x-spc.order=given";
        let mut healthy = Vec::new();
        for _ in 0..3 {
            let mounted = scene.mount(given, &scene.real(), "/mnt/data")?;
            healthy.push(scene.used(mounted, "/mnt/data")?);
        }
        healthy.sort();
        let healthy = healthy[1];
        for conducts in [
            [Conduct::Refuses, Conduct::Refuses],
            [Conduct::Refuses, Conduct::Drops],
            [Conduct::Drops, Conduct::Drops],
            [Conduct::Absent, Conduct::Silent],
            [Conduct::Silent, Conduct::Dies(behind, FEW)],
            [Conduct::Dies(behind, FEW), Conduct::Dies(behind, FEW)],
            [Conduct::Hangs(behind, FEW), Conduct::Refuses],
        ] {
            let dead = scene.faulty(&conducts)?;
            let mut servers = addresses(&dead);
            servers.push(scene.real()[1]);
            let mounted = scene.mount(given, &servers, "/mnt/data")?;
            let names = scene.given()?;
            ensure!(
                names.first() == Some(&scene.real()[1].to_string()) && names.len() == 3,
                "{conducts:?}: {names:?}, {mounted}"
            );
            let took = scene.used(mounted, "/mnt/data")?;
            eprintln!("{conducts:?}: {took:.2?}, {healthy:.2?} with three healthy servers");
            ensure!(
                took < 3 * healthy + Duration::from_secs(5) + lost(&conducts),
                "{conducts:?}: {took:?} instead of {healthy:?}"
            );
        }
        scene.spc.is_clean()
    });
}

#[test]
fn the_error_has_a_line_for_each_failed_server() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let dead = scene.faulty(&[
            Conduct::Refuses,
            Conduct::Drops,
            Conduct::Silent,
            Conduct::Dies(scene.behind(), FEW),
        ])?;
        let servers = addresses(&dead);
        let source = source(&servers);
        let words = ["-t", "glusterfs", "--timeout", "30", &source, "/mnt/data"];
        let output = scene.spc.refused_mount(
            &words,
            32,
            &[&format!("cannot mount {source}"), "4 servers"],
        )?;
        let text = output.error_text();
        for (server, expected) in servers.iter().zip([
            "port 24007: Connection refused",
            "no answer at port 24007",
            "accepts connections at port 24007, but does not reply",
            "answers at port 24007",
        ]) {
            let lines: Vec<_> = text
                .lines()
                .filter(|line| line.trim().starts_with(&format!("{server}: ")))
                .collect();
            ensure!(
                lines.len() == 1 && lines[0].contains(expected),
                "{expected}: {output}"
            );
        }
        ensure!(output.elapsed < Duration::from_secs(40), "{output}");
        scene.spc.is_clean()
    });
}

#[test]
fn a_repair_tries_the_next_server() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let behind = scene.behind();
        let servers = scene.faulty(&[Conduct::Serves(behind); 2])?;
        let places = addresses(&servers);
        scene
            .mount("x-spc.order=given", &places, "/mnt/data")?
            .ok()?;
        for conduct in [
            Conduct::Hangs(behind, FEW),
            Conduct::Dies(behind, FEW),
            Conduct::Drops,
            Conduct::Refuses,
        ] {
            // The repair tries this server first, whatever it did before.
            servers[0].turn(conduct)?;
            scene.spc.host.sh("rm -rf /run/spc/dead")?.ok()?;
            let (dead, _) = only(&scene.spc)?;
            let connections = servers[0].asked()?;
            kill(&scene.spc)?;
            let took = is_repaired(&scene.spc, dead)?;
            eprintln!("{conduct:?}: repaired after {took:.2?}");
            ensure!(servers[0].asked()? > connections, "{conduct:?}: not probed");
            let given = scene.given()?;
            ensure!(given.first() == Some(&places[1].to_string()), "{given:?}");
            // The fourth repair in a row starts some seconds later.
            ensure!(
                took < Duration::from_secs(20) + lost(&[conduct]),
                "{conduct:?}: {took:?}"
            );
        }
        scene.spc.umount("/mnt/data")?;
        scene.spc.is_clean()
    });
}

#[test]
fn servers_that_failed_recently_are_tried_last() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let behind = scene.behind();
        let given = "x-spc.order=given";
        let servers = scene.faulty(&[Conduct::Drops, Conduct::Serves(behind)])?;
        let places = addresses(&servers);
        let (first, second) = (&servers[0], &servers[1]);
        let mounted = scene.mount(given, &places, "/mnt/data")?;
        scene.used(mounted, "/mnt/data")?;
        let connections = first.asked()?;
        ensure!(connections > 0, "the first server was not probed");
        let order = scene.explained(given, &source(&places))?;
        ensure!(
            order
                == [
                    format!("{}:{PORT}", places[1]),
                    format!("{}:{PORT}", places[0])
                ],
            "{order:?}"
        );
        let mounted = scene.mount(given, &places, "/mnt/data")?;
        scene.used(mounted, "/mnt/data")?;
        ensure!(
            first.asked()? == connections,
            "the dead server was probed again"
        );

        // Now the other server is dead, and the cache of dead servers is outdated.
        first.turn(Conduct::Serves(behind))?;
        second.turn(Conduct::Drops)?;
        let mounted = scene.mount(given, &places, "/mnt/data")?;
        ensure!(first.asked()? > connections, "{mounted}");
        scene.used(mounted, "/mnt/data")?;
        let order = scene.explained(given, &source(&places))?;
        ensure!(order[0] == format!("{}:{PORT}", places[0]), "{order:?}");

        // The mount is the same, whichever server made it.
        scene.mount("rw", &places, "/mnt/other")?.ok()?;
        let id = scene.spc.on("/mnt/other")?[0].id;
        second.turn(Conduct::Serves(behind))?;
        first.turn(Conduct::Refuses)?;
        scene.mount("rw", &places, "/mnt/other")?.ok()?;
        let on = scene.spc.on("/mnt/other")?;
        ensure!(on.len() == 1 && on[0].id == id, "{on:?}");
        scene.spc.umount("/mnt/other")?;
        scene.spc.is_clean()
    });
}

#[test]
fn server_order_is_random_or_follows_the_seed() {
    with_gluster(|lab, cluster| {
        let scene = Scene::new(lab, cluster)?;
        let real = scene.real();
        let three = source(&real);
        let mut firsts = std::collections::BTreeMap::new();
        for seed in 0..12 {
            let options = format!("x-spc.order={seed}");
            let order = scene.explained(&options, &three)?;
            ensure!(order.len() == 3, "{order:?}");
            ensure!(scene.explained(&options, &three)? == order, "{order:?}");
            firsts.entry(order[0].clone()).or_insert(seed);
        }
        ensure!(firsts.len() == 3, "{firsts:?}");
        // The mount follows the explained order, and passes the other servers to its helper.
        for (first, seed) in &firsts {
            let options = format!("x-spc.order={seed}");
            let mounted = scene.mount(&options, &real, "/mnt/data")?;
            let mut given = scene.given()?;
            ensure!(
                first.starts_with(&format!("{}:", given[0])),
                "{first}: {given:?}"
            );
            given.sort();
            let mut all: Vec<_> = real.iter().map(ToString::to_string).collect();
            all.sort();
            ensure!(given == all, "{given:?}");
            scene.used(mounted, "/mnt/data")?;
        }
        let mut random = std::collections::BTreeSet::new();
        until("each server was the first once", || {
            random.insert(scene.explained("rw", &three)?[0].clone());
            Ok(random.len() == 3)
        })?;

        // A name with several addresses counts as several servers.
        let dead = scene.faulty(&[Conduct::Refuses, Conduct::Drops])?;
        let mut places = addresses(&dead);
        places.push(real[2]);
        let lines: String = places
            .iter()
            .map(|place| format!("{place} store.example\n"))
            .collect();
        let add = format!("printf '{}' >>/etc/hosts", lines.replace('\n', "\\n"));
        scene.spc.host.sh(&add)?.ok()?;
        scene.spc.sh(&add)?.ok()?;
        let order = scene.explained("rw", "store.example:/vol")?;
        ensure!(order.len() == 3, "{order:?}");
        let words = [
            "spc",
            "mount",
            "-t",
            "glusterfs",
            "store.example:/vol",
            "/mnt/data",
        ];
        let mounted = scene.spc.exec(&words)?;
        ensure!(scene.given()?[0] == real[2].to_string(), "{mounted}");
        scene.used(mounted, "/mnt/data")?;

        // A list on the command line or in a file counts as several servers, too.
        let list: Vec<_> = places.iter().map(ToString::to_string).collect();
        scene.spc.host.write(
            "/srv/servers",
            format!("# ours\n{}\n", list.join("\n")).as_bytes(),
        )?;
        scene
            .spc
            .exec(&[
                "sh",
                "-c",
                &format!("printf '%s\\n' {} >/srv/servers", list.join(" ")),
            ])?
            .ok()?;
        for servers in [list.join(","), "@/srv/servers".to_owned()] {
            let words = [
                "spc",
                "mount",
                "-t",
                "glusterfs",
                "--servers",
                &servers,
                "/vol",
                "/mnt/data",
            ];
            let mounted = scene.spc.exec(&words)?;
            ensure!(scene.given()?[0] == real[2].to_string(), "{mounted}");
            scene.used(mounted, "/mnt/data")?;
        }
        scene.spc.is_clean()
    });
}
