//! A real GlusterFS cluster: three hosts of the lab with a glusterd each, and replicated volumes.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::host::{Host, HostOptions};
use crate::outer::{Lab, shared};
use crate::roots::Root;

const NODES: usize = 3;

/// Limit for the start of glusterd, on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(180);

/// A cluster of servers that trust each other.
#[derive(Debug)]
pub struct Cluster<'lab> {
    nodes: Vec<Node<'lab>>,
}

/// A server of the cluster.
#[derive(Debug)]
pub struct Node<'lab> {
    host: Host<'lab>,
}

impl Lab {
    /// Starts a cluster without a volume. Most tests want [`gluster`].
    pub fn gluster(&self) -> Result<Cluster<'_>> {
        let started = Instant::now();
        let nodes = thread::scope(|scope| {
            let boots: Vec<_> = (0..NODES)
                .map(|_| scope.spawn(|| Node::boot(self)))
                .collect();
            let joined = boots.into_iter().map(|boot| {
                boot.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.collect::<Result<Vec<_>>>()
        })?;
        let cluster = Cluster { nodes };
        let first = cluster.first()?;
        for node in &cluster.nodes[1..] {
            first.gluster(&["peer", "probe", &node.host.address().to_string()])?;
        }
        // A server refuses a new volume until it is connected to all others.
        let known = format!(
            "until [ $(gluster pool list | grep -cw Connected) = {NODES} ]; do sleep 0.1; done"
        );
        for node in &cluster.nodes {
            node.host
                .sh(&known)?
                .ok()
                .context("a server does not see the others")?;
        }
        first
            .host
            .say_cost("a GlusterFS cluster, of which one server", started);
        Ok(cluster)
    }
}

impl<'lab> Cluster<'lab> {
    /// Returns the servers.
    pub fn nodes(&self) -> &[Node<'lab>] {
        &self.nodes
    }

    fn first(&self) -> Result<&Node<'lab>> {
        self.nodes.first().context("no servers")
    }

    /// Makes and starts a volume with a replica on each server. Clients mount `NODE:/NAME`.
    pub fn create_volume(&self, name: &str) -> Result<()> {
        let started = Instant::now();
        let first = self.first()?;
        let bricks: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.brick_address(name))
            .collect();
        let mut words = vec!["volume", "create", name, "replica", "3"];
        words.extend(bricks.iter().map(String::as_str));
        words.push("force");
        first.gluster(&words)?;
        first.gluster(&["volume", "start", name])?;
        eprintln!("lab: volume {name} in {:.1?}", started.elapsed());
        Ok(())
    }
}

impl<'lab> Node<'lab> {
    fn boot(lab: &'lab Lab) -> Result<Self> {
        let host = lab.host(HostOptions {
            root: Root::Server,
            ..HostOptions::default()
        })?;
        // GlusterFS keeps its own data in trusted attributes, which tmpfs supports.
        host.sh("mkdir /bricks && mount -t tmpfs bricks /bricks")?
            .ok()?;
        let node = Self { host };
        node.start()?;
        Ok(node)
    }

    /// Returns the server's host.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }

    /// Returns the directory of a volume's brick on this host.
    pub fn brick(&self, volume: &str) -> PathBuf {
        Path::new("/bricks").join(volume)
    }

    /// Starts glusterd, which starts the bricks of all started volumes.
    pub fn start(&self) -> Result<()> {
        let script = "glusterd && until gluster pool list >/dev/null 2>&1; do sleep 0.1; done";
        let start = self.host.command(&["sh", "-c", script])?;
        start.limit(START_LIMIT).run()?.ok()?;
        Ok(())
    }

    /// Kills glusterd and all bricks, as a power cut does.
    pub fn stop(&self) -> Result<()> {
        self.host
            .sh("busybox killall -9 glusterd glusterfsd glusterfs 2>/dev/null; true")?
            .ok()?;
        Ok(())
    }

    fn gluster(&self, words: &[&str]) -> Result<()> {
        self.host
            .run(&[&["gluster", "--mode=script"], words].concat())?
            .ok()?;
        Ok(())
    }

    fn brick_address(&self, volume: &str) -> String {
        format!("{}:{}", self.host.address(), self.brick(volume).display())
    }
}

/// Returns the cluster that all tests of this process share, with a volume `vol`, or `None` where
/// there is no lab.
pub fn gluster() -> Option<&'static Cluster<'static>> {
    static CLUSTER: OnceLock<Cluster<'static>> = OnceLock::new();
    let lab = shared()?;
    let start = || {
        let cluster = lab.gluster()?;
        cluster.create_volume("vol")?;
        anyhow::Ok(cluster)
    };
    Some(CLUSTER.get_or_init(|| start().unwrap_or_else(|error| panic!("{error:?}"))))
}
