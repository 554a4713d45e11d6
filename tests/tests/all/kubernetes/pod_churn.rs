//! Pods that start and stop in random order, while the driver, its worker processes and its helpers
//! are killed. Nothing may be left over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Lab};

use crate::kubernetes::flexvolume::sshd;
use crate::kubernetes::kubelet::{Kubelet, Pod, ROOT, Volume, driver, install};
use crate::support::random::Random;
use crate::support::{Spc, entries, until, with_gluster};

/// Number of pods that start or stop at the same time, as with kubelet's workers.
const WORKERS: usize = 4;

/// Greatest number of running pods per worker.
const RUNNING: usize = 4;

/// Numbers of events.
#[derive(Default)]
struct Counts {
    started: AtomicUsize,
    kills: AtomicUsize,
    retries: AtomicUsize,
}

struct Node<'a> {
    host: &'a Host<'a>,
    kubelet: Kubelet<'a, Host<'a>>,
    volumes: Vec<Volume>,
    counts: Counts,
}

impl Node<'_> {
    /// Calls the driver, and kills it or its worker process after a random time.
    fn killed(&self, random: &mut Random, words: &[&str]) -> Result<()> {
        let script = r#"
            delay=$1 whom=$2; shift 2
            "$@" >/dev/null 2>&1 & driver=$!
            sleep "$delay"
            case $whom in
            driver) kill -9 $driver ;;
            work) kill -9 $(cat /proc/$driver/task/$driver/children) ;;
            all) kill -9 $driver $(cat /proc/$driver/task/$driver/children) ;;
            esac 2>/dev/null
            wait $driver"#;
        let delay = format!("0.{:03}", random.below(700));
        let whom = ["driver", "work", "all"][random.below(3)];
        let driver = driver();
        let shell = ["sh", "-c", script, "kill", &delay, whom, &driver];
        self.host.run(&[&shell, words].concat())?;
        self.counts.kills.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Repeats a call until it succeeds, as kubelet does.
    fn insist(&self, what: &str, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        for _ in 0..20 {
            match work() {
                Ok(()) => return Ok(()),
                Err(error) => {
                    eprintln!("{what} is tried again: {error:#}");
                    self.counts.retries.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(500));
                }
            }
        }
        work().with_context(|| what.to_owned())
    }

    fn start(&self, random: &mut Random, pod: &Pod) -> Result<()> {
        let directory = pod.directory();
        if random.below(6) == 0 {
            self.host.run(&["mkdir", "-p", &directory])?.ok()?;
            self.killed(random, &["mount", &directory, &self.kubelet.options(pod)])?;
            // The pod may be deleted before the next attempt.
            if random.below(3) == 0 {
                return Ok(());
            }
        }
        self.insist("a start", || self.kubelet.set_up(pod))?;
        self.counts.started.fetch_add(1, Ordering::Relaxed);
        self.host
            .run(&["cat", &format!("{directory}/file")])?
            .ok()
            .map(drop)
    }

    fn stop(&self, random: &mut Random, pod: &Pod) -> Result<()> {
        if random.below(6) == 0 {
            self.killed(random, &["unmount", &pod.directory()])?;
        }
        self.insist("a stop", || self.kubelet.tear_down(pod))
    }

    /// Starts and stops one worker's share of the pods.
    fn work(&self, worker: usize, pods: usize) -> Result<()> {
        let mut random = Random(worker as u64 + 1);
        let mut running: Vec<Pod> = Vec::new();
        let mut started = 0;
        while started < pods || !running.is_empty() {
            let may_start = started < pods && running.len() < RUNNING;
            if may_start && (running.is_empty() || random.below(2) == 0) {
                let volume = self.volumes[random.below(self.volumes.len())].clone();
                let mut pod = Pod::new(&format!("{worker}-{started}"), volume);
                pod.volume.read_only = random.below(3) == 0;
                self.start(&mut random, &pod)?;
                started += 1;
                running.push(pod);
            } else {
                let pod = running.swap_remove(random.below(running.len()));
                self.stop(&mut random, &pod)?;
            }
        }
        Ok(())
    }
}

fn pods_at_random(lab: &'static Lab, cluster: &Cluster<'_>, pods: usize) -> Result<()> {
    let spc = Spc::privileged(lab)?;
    install(&spc)?;
    let node = cluster.nodes()[0].host();
    let server = sshd(lab, "of root")?;
    let gluster = format!("{}:/vol", node.address());
    let volumes = vec![
        Volume::new("glusterfs", &[("source", &gluster)]),
        Volume::new(
            "fuse.sshfs",
            &[
                ("source", &format!("root@{}:/srv/data", server.address())),
                ("options", "StrictHostKeyChecking=no"),
            ],
        )
        .secret("password", "of root"),
    ];
    let before = entries(&spc.host)?;
    let node = Node {
        host: &spc.host,
        kubelet: Kubelet::start(&spc.host)?,
        volumes,
        counts: Counts::default(),
    };
    let first = Pod::new("first", node.volumes[0].clone());
    node.kubelet.set_up(&first)?;
    spc.host
        .write(format!("{}/file", first.directory()), b"of a pod")?;
    node.kubelet.tear_down(&first)?;

    let begun = Instant::now();
    let share = pods.div_ceil(WORKERS);
    thread::scope(|scope| {
        let node = &node;
        let workers = (0..WORKERS).map(|worker| scope.spawn(move || node.work(worker, share)));
        let workers: Vec<_> = workers.collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })?;
    let count = |number: &AtomicUsize| number.load(Ordering::Relaxed);
    eprintln!(
        "{} pods in {:.0?}: {} were started, {} calls were killed, {} tried again",
        share * WORKERS,
        begun.elapsed(),
        count(&node.counts.started),
        count(&node.counts.kills),
        count(&node.counts.retries)
    );

    until("nothing is left", || Ok(spc.is_clean().is_ok()))
        .with_context(|| format!("{:?}", spc.is_clean()))?;
    until("no process is left", || {
        let find = "ps -o args | grep -E 'flexvolume|glusterfs --|sshfs' | grep -v grep";
        Ok(spc.host.sh(find)?.text().is_empty())
    })?;
    let left = format!("find {ROOT}/pods -path '*/volumes/*/*'; grep {ROOT} /proc/mounts; true");
    let left = spc.host.sh(&left)?.ok()?.text();
    ensure!(left.is_empty(), "left: {left}");
    let after = entries(&spc.host)?;
    ensure!(after == before, "{before} entries before, {after} after");
    Ok(())
}

#[test]
fn a_thousand_random_pods_leave_nothing() {
    with_gluster(|lab, cluster| pods_at_random(lab, cluster, 1000));
}
