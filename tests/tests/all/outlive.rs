//! Mounts outlive the container that made them: programs read and write on them while it is restarted, removed,
//! replaced by a new version and killed, and none sees an error or another mount.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Base, Ceph, Cluster, Engine, Lab, Propagation};

use crate::fuse::sshd;
use crate::steady::Steady;
use crate::support::{Container, LEAST, Spc, until, with_lab};

/// Where the keys lie on the host, and where the container sees them.
const KEYS: [&str; 2] = ["-v", "/srv/keys:/keys:ro"];

/// Files of the image's own, which docker deletes with the container.
const ENGINES: [&str; 2] = ["/var/lib/docker", "/var/lib/containers"];

/// A container whose mounts have programs at work on them.
struct Scene<H> {
    spc: Container<H>,
    steady: Vec<Steady>,
}

impl<H: AnyHost> Scene<H> {
    fn new(spc: Container<H>) -> Self {
        let steady = Vec::new();
        Self { spc, steady }
    }

    /// Mounts, and puts a program to work.
    fn mount(&mut self, words: &[&str], target: &str) -> Result<()> {
        let mount = ["spc", "mount", "-o", "x-mount.mkdir"];
        self.spc.exec(&[&mount, words, &[target]].concat())?.ok()?;
        self.steady.push(Steady::start(&self.spc, target)?);
        Ok(())
    }

    /// Does something to the container, and no program notices.
    fn survive(&self, what: &str, deed: impl FnOnce() -> Result<()>) -> Result<()> {
        deed().context(what.to_owned())?;
        for steady in &self.steady {
            steady.goes_on(&self.spc).context(what.to_owned())?;
        }
        eprintln!("outlived: {what}");
        Ok(())
    }

    /// The container knows the mounts as those that they were, and they answer.
    fn is_known(&self) -> Result<()> {
        for steady in &self.steady {
            let record = self.spc.record(&steady.target)?;
            for field in ["state", "mount_id", "source", "daemon", "since"] {
                ensure!(
                    record[field] == steady.record[field],
                    "{field} of {} became {record}",
                    steady.record
                );
            }
            ensure!(record["state"] == "ok", "{record}");
        }
        Ok(())
    }

    /// No daemon has anything of the container or of the command that started it.
    fn are_on_their_own(&self) -> Result<()> {
        for steady in &self.steady {
            let daemons = steady.record["daemon"].as_array().context("no list")?;
            ensure!(!daemons.is_empty(), "no daemon: {}", steady.record);
            for daemon in daemons {
                self.is_on_its_own(&daemon.to_string())
                    .with_context(|| steady.target.clone())?;
            }
        }
        Ok(())
    }

    fn is_on_its_own(&self, daemon: &str) -> Result<()> {
        let container = self.spc.pid()?;
        for namespace in ["pid", "net"] {
            let own = self.look(daemon, &format!("readlink ns/{namespace}"))?;
            let first = self.look("1", &format!("readlink ns/{namespace}"))?;
            ensure!(own == first, "not the host's: {own}");
        }
        let streams = self.look(daemon, "readlink fd/0 fd/1 fd/2")?;
        let closed =
            |stream: &str| stream.starts_with("/dev/null") || stream.starts_with("/memfd:");
        ensure!(streams.lines().all(closed), "standard streams: {streams}");
        let (own, theirs) = (self.cgroup(daemon)?, self.cgroup(&container)?);
        ensure!(
            own.contains("spc") && !own.starts_with(&theirs),
            "cgroups: {own}, and of the container {theirs}"
        );
        let look = "readlink ns/mnt";
        let (own, theirs) = (self.look(daemon, look)?, self.look(&container, look)?);
        ensure!(own != theirs, "in the container's mount namespace");
        let table = self.look(daemon, "cat mountinfo maps")?;
        for files in ENGINES {
            ensure!(!table.contains(files), "it leans on {files}:\n{table}");
        }
        Ok(())
    }

    /// What a script says in a process's directory below `/proc`.
    fn look(&self, pid: &str, script: &str) -> Result<String> {
        let script = format!("cd /proc/{pid} && {script}");
        Ok(self.spc.host.sh(&script)?.ok()?.text())
    }

    /// The cgroup of a process.
    fn cgroup(&self, pid: &str) -> Result<String> {
        self.look(pid, "sed -n 's/^0:://p' cgroup")
    }

    /// Kills everything that is in the container's cgroup, whoever started it.
    fn kill_container(&self) -> Result<()> {
        let cgroup = self.cgroup(&self.spc.pid()?)?;
        ensure!(cgroup.len() > 1, "no cgroup of its own: {cgroup}");
        let kill = format!("echo 1 >/sys/fs/cgroup{cgroup}/cgroup.kill");
        self.spc.host.sh(&kill)?.ok()?;
        Ok(())
    }

    /// The client roots on the host.
    fn roots(&self) -> Result<BTreeSet<String>> {
        let list = self.spc.host.sh("ls /var/lib/spc/roots")?.ok()?.text();
        Ok(list.lines().map(str::to_owned).collect())
    }
}

impl Scene<lab::Host<'_>> {
    fn run(&self, image: &str) -> Result<()> {
        let run = ["docker", "run", "-d", "--name", "spc"];
        let words = [&run, &LEAST[..], &KEYS, &[image]].concat();
        self.spc.host.run(&words)?.ok().map(drop)
    }

    /// The keys of the servers, in files of the host that the container is given.
    fn keys(&self, server: &lab::Host<'_>, ceph: &Ceph<'_>) -> Result<()> {
        let host = &self.spc.host;
        host.write("/srv/keys/ssh", &server.read("/root/key")?)?;
        host.write("/srv/keys/app", ceph.secret("app")?.as_bytes())?;
        host.sh("chmod 600 /srv/keys/*")?.ok()?;
        Ok(())
    }
}

/// GlusterFS, ceph-fuse and sshfs.
fn mount_all<H: AnyHost>(
    scene: &mut Scene<H>,
    cluster: &Cluster<'_>,
    ceph: &Ceph<'_>,
    server: &lab::Host<'_>,
) -> Result<()> {
    let source = format!("{}:/vol", cluster.nodes()[0].host().address());
    scene.mount(&["-t", "glusterfs", &source], "/mnt/gluster")?;
    let options = "name=app,secretfile=/keys/app";
    let source = format!("{}:/app", ceph.address());
    let words = ["-t", "ceph-fuse", "-o", options, &source];
    scene.mount(&words, "/mnt/ceph")?;
    let source = format!("root@{}:/srv/data", server.address());
    let options = "IdentityFile=/keys/ssh,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,BatchMode=yes";
    let words = ["-t", "fuse.sshfs", "-o", options, &source];
    scene.mount(&words, "/mnt/ssh")
}

/// A new version of the image: the same with one more file.
const NEXT: &str = "
    mkdir -p /tmp/next && cd /tmp/next && echo 'the next version' >version
    printf 'FROM localhost/spc:latest\\nCOPY version /usr/share/spc/version\\n' >Dockerfile
    docker build -q -t localhost/spc:next .
";

fn with_all(
    body: impl FnOnce(&'static Lab, &'static Cluster<'static>, &'static Ceph<'static>) -> Result<()>,
) {
    with_lab(|lab| {
        let cluster = lab::gluster().context("no cluster")?;
        body(lab, cluster, lab::ceph().context("no cluster")?)
    });
}

#[test]
fn mounts_outlive_their_container() {
    with_all(|lab, cluster, ceph| {
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        let run = [&LEAST[..], &KEYS].concat();
        let mut scene = Scene::new(Spc::start(lab, shared, docker, Base::Trixie, &run)?);
        let server = sshd(lab)?;
        scene.keys(&server, ceph)?;
        mount_all(&mut scene, cluster, ceph, &server)?;
        let (spc, old) = (&scene.spc, scene.roots()?);
        ensure!(old.len() == 1, "client roots: {old:?}");
        scene.are_on_their_own()?;

        let docker = |words: &[&str]| {
            let words = [&["docker"], words].concat();
            spc.host.run(&words)?.ok().map(drop)
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
        scene.survive("docker run", || scene.run(Base::Trixie.image()))?;
        scene.is_known()?;
        spc.host.sh(NEXT)?.ok()?;
        scene.survive("an upgrade", || {
            spc.remove()?;
            scene.run("localhost/spc:next")
        })?;
        scene.is_known()?;

        // What is mounted now is of the new version.
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        scene.mount(&["-t", "glusterfs", &source], "/mnt/next")?;
        let both = scene.roots()?;
        ensure!(
            both.len() == 2 && old.is_subset(&both),
            "client roots: {both:?}"
        );
        scene.survive("the removal of both versions", || {
            scene.spc.remove()?;
            scene.run("localhost/spc:next")
        })?;
        scene.is_known()?;
        scene.are_on_their_own()?;

        // Each root goes with its last mount, the new one stays for the container that may want it again.
        let Scene { spc, steady } = scene;
        for steady in steady {
            let target = steady.target.clone();
            steady.end(&spc)?;
            spc.exec(&["spc", "umount", &target])?.ok()?;
            ensure!(spc.on(&target)?.is_empty(), "still there: {target}");
        }
        let scene = Scene::new(spc);
        let new: BTreeSet<_> = both.difference(&old).cloned().collect();
        until("the old root is gone", || Ok(scene.roots()? == new))?;
        scene.spc.is_clean()
    });
}
