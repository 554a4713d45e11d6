//! Mounts outlive their container. Programs read and write while it is restarted, removed, replaced
//! by a new version and killed. No program sees an error or another mount.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Base, Engine, Host, Lab, Propagation, Root, Vm, VmOptions};
use serde_json::{Value, json};

use crate::crash::steady_io::Steady;
use crate::servers::lab_servers::Servers;
use crate::support::{Container, MINIMAL, Spc, VmSpc, until, with_lab};

/// Scratch files of the image, which docker deletes with the container.
const ENGINES: [&str; 2] = ["/var/lib/docker", "/var/lib/containers"];

/// A container whose mounts are in use by programs.
struct Scene<H> {
    spc: Container<H>,
    steady: Vec<Steady>,
}

impl<H: AnyHost> Scene<H> {
    fn new(spc: Container<H>) -> Self {
        let steady = Vec::new();
        Self { spc, steady }
    }

    /// Mounts, and starts a program on the mount.
    fn mount(&mut self, words: &[String]) -> Result<()> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.spc.exec(&words)?.ok()?;
        let target = words.last().context("no target")?;
        self.steady.push(Steady::start(&self.spc, target)?);
        Ok(())
    }

    /// Does something to the container, and checks that no program notices.
    fn survive(&self, what: &str, deed: impl FnOnce() -> Result<()>) -> Result<()> {
        deed().context(what.to_owned())?;
        for steady in &self.steady {
            steady.goes_on(&self.spc).context(what.to_owned())?;
        }
        eprintln!("outlived: {what}");
        Ok(())
    }

    /// Checks that the container knows all mounts, and that they respond.
    fn is_known(&self) -> Result<()> {
        for steady in &self.steady {
            let record = self.spc.record(&steady.target)?;
            for field in ["mount_id", "source", "daemon", "root"] {
                ensure!(
                    record[field] == steady.record[field],
                    "{field} of {} became {record}",
                    steady.record
                );
            }
            // On a busy machine, a probe may exceed its limit.
            until(&format!("{} answers", steady.target), || {
                Ok(self.spc.record(&steady.target)?["state"] == "ok")
            })?;
        }
        Ok(())
    }

    /// Checks that no daemon holds anything of the container or of the command that started it.
    fn are_on_their_own(&self) -> Result<()> {
        // One listing of all: a machine that is emulated takes seconds for it.
        let listing = self.in_proc("", "ls -l [0-9]*/fd 2>/dev/null || true")?;
        let mut holders: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut process = "";
        for line in listing.lines() {
            if let Some(pid) = line.strip_suffix("/fd:") {
                process = pid;
            } else if let Some((_, file)) = line.split_once(" -> ") {
                holders.entry(file).or_default().insert(process);
            }
        }
        for steady in &self.steady {
            let daemons = steady.record["daemon"].as_array().context("no list")?;
            ensure!(!daemons.is_empty(), "no daemon: {}", steady.record);
            for daemon in daemons {
                self.is_on_its_own(&daemon.to_string(), &holders)
                    .with_context(|| steady.target.clone())?;
            }
        }
        Ok(())
    }

    fn is_on_its_own(&self, daemon: &str, holders: &BTreeMap<&str, BTreeSet<&str>>) -> Result<()> {
        let container = self.spc.pid()?;
        for namespace in ["pid", "net"] {
            let own = self.in_proc(daemon, &format!("readlink ns/{namespace}"))?;
            let first = self.in_proc("1", &format!("readlink ns/{namespace}"))?;
            ensure!(own == first, "not in the host's namespaces: {own}");
        }
        for fd in 0..3 {
            let stream = self.in_proc(daemon, &format!("readlink fd/{fd} || echo closed"))?;
            let closed = ["closed", "/dev/null", "/memfd:"];
            if closed.iter().any(|start| stream.starts_with(start)) {
                continue;
            }
            // A process that closes its descriptors may reuse the numbers for others that it opened
            // itself. A pipe for output is only of the daemon and its children.
            let own = self.cgroup(daemon)?;
            let holders = holders.get(stream.as_str()).context("not in the listing")?;
            ensure!(holders.contains(daemon), "{stream}: {holders:?}");
            for holder in holders {
                // A holder that has ended has no cgroup.
                let theirs = self.cgroup(holder).unwrap_or_else(|_| own.clone());
                ensure!(theirs == own, "stream {fd} is {stream}, as in {holder}");
            }
        }
        let (own, theirs) = (self.cgroup(daemon)?, self.cgroup(&container)?);
        ensure!(
            own.contains("spc") && !own.starts_with(&theirs),
            "cgroups: {own}, and of the container {theirs}"
        );
        let command = "readlink ns/mnt";
        let (own, theirs) = (
            self.in_proc(daemon, command)?,
            self.in_proc(&container, command)?,
        );
        ensure!(own != theirs, "in the container's mount namespace");
        let table = self.in_proc(daemon, "cat mountinfo maps")?;
        for files in ENGINES {
            ensure!(
                !table.contains(files),
                "the daemon uses {files} of the container:\n{table}"
            );
        }
        Ok(())
    }

    /// Output of a script that runs in a process's directory below `/proc`.
    fn in_proc(&self, pid: &str, script: &str) -> Result<String> {
        let script = format!("cd /proc/{pid} && {script}");
        Ok(self.spc.host.sh(&script)?.ok()?.text())
    }

    /// Cgroup of a process.
    fn cgroup(&self, pid: &str) -> Result<String> {
        self.in_proc(pid, "sed -n 's/^0:://p' cgroup")
    }

    /// Kills every process in the container's cgroup.
    fn kill_container(&self) -> Result<()> {
        let cgroup = self.cgroup(&self.spc.pid()?)?;
        ensure!(cgroup.len() > 1, "no cgroup of its own: {cgroup}");
        let kill = format!("echo 1 >/sys/fs/cgroup{cgroup}/cgroup.kill");
        self.spc.host.sh(&kill)?.ok()?;
        Ok(())
    }

    /// Ends the programs, checks that none saw an error, and unmounts.
    fn end(self) -> Result<Container<H>> {
        for steady in self.steady {
            let target = steady.target.clone();
            steady.end(&self.spc)?;
            self.spc.umount(&target)?;
            ensure!(self.spc.on(&target)?.is_empty(), "still mounted: {target}");
        }
        Ok(self.spc)
    }

    /// Names of the client root file systems on the host.
    fn roots(&self) -> Result<BTreeSet<String>> {
        let list = self.spc.host.sh("ls -A /var/lib/spc/roots")?.ok()?.text();
        let roots = list.lines().filter(|name| *name != "lock");
        Ok(roots.map(str::to_owned).collect())
    }
}

impl Scene<Vm<'_>> {
    /// Lets systemd start the container, in a cgroup below its service's.
    fn becomes_a_service(&self) -> Result<()> {
        let host = &self.spc.host;
        self.spc.remove()?;
        let file = "/run/container/config.json";
        let mut config: Value = serde_json::from_slice(&host.read(file)?)?;
        config["linux"]["cgroupsPath"] = json!("/system.slice/spc.service/container");
        host.write(file, &serde_json::to_vec(&config)?)?;
        let unit = "
            [Unit]
            Description=Storage clients
            [Service]
            Delegate=yes
            ExecStartPre=-runc delete -f spc
            ExecStart=runc run --bundle /run/container spc
        ";
        host.write("/run/systemd/system/spc.service", unit.as_bytes())?;
        self.systemctl(&["daemon-reload"])?;
        self.service("start")
    }

    /// Starts or restarts the container's service.
    fn service(&self, verb: &str) -> Result<()> {
        self.systemctl(&[verb, "spc"])?;
        let up = until("the container runs", || {
            Ok(self.spc.exec(&["true"])?.success())
        });
        up.or_else(|error| Err(error.context(self.spc.host.sh("systemctl status spc")?)))
    }

    /// Starts a service that runs these commands and then is active.
    fn start_service(&self, name: &str, commands: &[String]) -> Result<()> {
        let host = &self.spc.host;
        let script = format!("set -e\n{}\n", commands.join("\n"));
        host.write(format!("/run/{name}"), script.as_bytes())?;
        let unit =
            format!("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=sh /run/{name}\n");
        let file = format!("/run/systemd/system/{name}.service");
        host.write(file, unit.as_bytes())?;
        self.systemctl(&["daemon-reload"])?;
        self.systemctl(&["start", name])
    }

    /// Runs systemctl with a long limit: a service that mounts needs time on a busy machine.
    fn systemctl(&self, words: &[&str]) -> Result<()> {
        let command = self.spc.host.command(&[&["systemctl"], words].concat());
        let limit = Duration::from_secs(240);
        command.limit(limit).run()?.ok().map(drop)
    }

    /// Checks that the mounts outlive a service which made them: restarted, started again, stopped.
    fn outlives(&self, service: &str) -> Result<()> {
        for verb in ["restart", "stop"] {
            self.survive(&format!("systemctl {verb} {service}"), || {
                self.systemctl(&[verb, service])
            })?;
        }
        Ok(())
    }

    /// Scopes that systemd has for spc's mounts, with their descriptions.
    fn scopes(&self) -> Result<Vec<String>> {
        let list = "systemctl list-units --plain --no-legend 'spc-*.scope'";
        let list = self.spc.host.sh(list)?.ok()?.text();
        let mounts = list
            .lines()
            .filter(|line| !line.starts_with("spc-clients-"));
        Ok(mounts.map(str::to_owned).collect())
    }

    /// Checks that each mount has a scope with a readable description.
    fn have_scopes(&self) -> Result<()> {
        let scopes = self.scopes()?;
        for steady in &self.steady {
            let is_of_target = |scope: &&String| scope.contains(&steady.target);
            let found = scopes.iter().filter(is_of_target).count();
            ensure!(found == 1, "{}: {scopes:?}", steady.target);
        }
        ensure!(scopes.len() == self.steady.len(), "{scopes:?}");
        Ok(())
    }
}

/// A new version of the image: the same with one more file.
pub const NEXT: &str = "
    mkdir -p /tmp/next && cd /tmp/next && echo 'the next version' >version
    printf 'FROM localhost/spc:latest\\nCOPY version /usr/share/spc/version\\n' >Dockerfile
    docker build -q -t localhost/spc:next .
";

/// Starts the container with the recommended run line, and copies the keys.
fn started<'a>(lab: &'a Lab, servers: &Servers<'_>, engine: Engine) -> Result<Scene<Host<'a>>> {
    let spc = Spc::start(lab, Propagation::Shared, engine, Base::Trixie, &MINIMAL)?;
    servers.keys(&spc.host)?;
    Ok(Scene::new(spc))
}

#[test]
fn mounts_outlive_their_container() {
    with_lab(|lab| {
        let servers = Servers::start(lab)?;
        let mut scene = started(lab, &servers, Engine::Docker)?;
        for command in servers.commands() {
            scene.mount(&command)?;
        }
        let (spc, old) = (&scene.spc, scene.roots()?);
        ensure!(old.len() == 1, "client roots: {old:?}");
        scene.are_on_their_own()?;

        let docker = |words: &[&str]| {
            let words = [&["docker"], words].concat();
            spc.host.run(&words)?.ok().map(drop)
        };
        let run = |image: &str| {
            let run = ["run", "-d", "--name", "spc"];
            docker(&[&run, &MINIMAL[..], &[image]].concat())
        };
        scene.survive("docker restart", || docker(&["restart", "-t", "2", "spc"]))?;
        scene.is_known()?;
        scene.survive("a kill of everything in the container", || {
            scene.kill_container()
        })?;
        scene.survive("docker start", || docker(&["start", "spc"]))?;
        scene.is_known()?;
        scene.survive("the end of the engine", || {
            let end = "pid=$(pidof dockerd); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done";
            spc.host.sh(end)?.ok()?;
            spc.host.start(Engine::Docker, None)
        })?;
        scene.survive("docker rm -f", || spc.remove())?;
        scene.survive("docker run", || run(Base::Trixie.image()))?;
        scene.is_known()?;
        spc.host.sh(NEXT)?.ok()?;
        scene.survive("an upgrade", || {
            spc.remove()?;
            run("localhost/spc:next")
        })?;
        scene.is_known()?;

        // Mounts from now on use the new version.
        scene.mount(&servers.gluster("/mnt/next"))?;
        let both = scene.roots()?;
        ensure!(
            both.len() == 2 && old.is_subset(&both),
            "client roots: {both:?}"
        );
        scene.is_known()?;
        scene.are_on_their_own()?;

        // The unmount of its last mount removes the old client root file system. The new one stays
        // for the container.
        let spc = scene.end()?;
        let scene = Scene::new(spc);
        let new: BTreeSet<_> = both.difference(&old).cloned().collect();
        until("the old client root file system is gone", || {
            Ok(scene.roots()? == new)
        })?;
        scene.spc.is_clean()
    });
}

#[test]
fn mounts_outlive_podmans_container() {
    with_lab(|lab| {
        let servers = Servers::start(lab)?;
        let mut scene = started(lab, &servers, Engine::Podman)?;
        for command in servers.commands() {
            scene.mount(&command)?;
        }
        scene.are_on_their_own()?;
        let spc = &scene.spc;
        scene.survive("podman restart", || {
            let restart = ["podman", "restart", "-t", "2", "spc"];
            spc.host.run(&restart)?.ok().map(drop)
        })?;
        scene.is_known()?;
        scene.survive("podman rm -f", || spc.remove())?;
        spc.run(Base::Trixie, &MINIMAL)?.ok()?;
        scene.is_known()?;
        scene.end()?.is_clean()
    });
}

/// Checks the test itself: a daemon in the container ends with it, and the programs notice.
#[test]
fn a_daemon_in_the_container_ends_with_it() {
    with_lab(|lab| {
        let servers = Servers::start(lab)?;
        let mut scene = started(lab, &servers, Engine::Docker)?;
        let mut words = servers.gluster("/mnt/data");
        words.insert(2, "-ox-spc.container".to_owned());
        scene.mount(&words)?;
        let removed = scene.survive("docker rm -f", || scene.spc.remove());
        let error = format!("{:?}", removed.err().context("no error was seen")?);
        ensure!(error.contains("not connected"), "{error}");
        Ok(())
    });
}

#[test]
fn mounts_outlive_services_of_systemd() {
    with_lab(|lab| {
        let servers = Servers::start(lab)?;
        let spc = VmSpc::boot(
            lab,
            VmOptions {
                root: Root::Systemd,
                memory: 1536,
                ..VmOptions::default()
            },
        )?;
        servers.keys(&spc.host)?;
        let mut scene = Scene::new(spc);
        scene.becomes_a_service()?;
        let commands = servers.commands();
        let commands = commands.map(|words| format!("runc exec spc {}", words.join(" ")));
        scene.start_service("app", &commands)?;
        for words in servers.commands() {
            let target = words.last().context("no target")?;
            scene.steady.push(Steady::start(&scene.spc, target)?);
        }
        scene.are_on_their_own()?;
        scene.have_scopes()?;
        scene.outlives("app")?;
        scene.survive("a restart of the container's service", || {
            scene.service("restart")
        })?;
        scene.is_known()?;
        scene.survive("a kill of everything in the container's service", || {
            scene.systemctl(&["kill", "--signal=KILL", "spc"])
        })?;
        scene.service("start")?;
        scene.is_known()?;
        // The same on the host itself, where a daemon would be in the cgroup of the process that
        // ran mount(8).
        scene.spc.exec(&["spc", "install"])?.ok()?;
        let native = servers.gluster("/mnt/native").split_off(4).join(" ");
        let native = ["mkdir -p /mnt/native".into(), format!("mount {native}")];
        scene.start_service("native", &native)?;
        scene.steady.push(Steady::start(&scene.spc, "/mnt/native")?);
        scene.outlives("native")?;
        scene.have_scopes()?;
        scene.is_known()?;
        let spc = scene.end()?;
        let scene = Scene::new(spc);
        until("no scope is left", || Ok(scene.scopes()?.is_empty()))?;
        scene.spc.is_clean()
    });
}
