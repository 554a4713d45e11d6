//! Metrics of `spc serve` in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufReader;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::kinds::label;
use crate::liveness::health::Health;
use crate::state::events::{Operation, Report};

/// Value of the HTTP header `Content-Type`.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Time for which a probe of the mounts stays valid. A probe needs a process for each mount.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Limit for the probe of all mounts. Each mount has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(10);

/// Age of the heartbeat at which the loop counts as stuck. The loop runs at least once a minute.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(180);

/// Buckets of the histograms in seconds, from a typical mount by the kernel to the default timeout.
const BUCKETS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 120.0,
];

/// Counters since the start of `spc serve`, and gauges of the current mounts.
pub struct Metrics {
    registry: Registry,
    mounts: IntGaugeVec,
    probe_success: IntGauge,
    mounting: HistogramVec,
    unmounting: HistogramVec,
    repairs: IntCounterVec,
    failures: IntCounterVec,
    /// Time of the last probe of the mounts.
    last_probe: Mutex<Option<Instant>>,
    started: Instant,
    /// Time of the last heartbeat in milliseconds since `started`; 0 while the host is not watched.
    last_loop: AtomicU64,
}

/// Fields of a mount in `spc ls --json` that are counted.
#[derive(Deserialize)]
struct ListedMount {
    r#type: String,
    state: String,
}

/// Number of mounts by kind and state.
///
/// The list is counted while it is parsed, so that its size in memory does not depend on the number
/// of mounts.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, BTreeMap<String, i64>>);

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(list: D) -> std::result::Result<Self, D::Error> {
        list.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for Counts {
    type Value = Self;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a list of mounts")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<Self, A::Error> {
        while let Some(ListedMount { r#type, state }) = list.next_element()? {
            let by_state = self.0.entry(label(&r#type)).or_default();
            *by_state.entry(state).or_default() += 1;
        }
        Ok(self)
    }
}

impl Metrics {
    /// Creates all metrics, with counters at 0.
    ///
    /// # Errors
    /// Two metrics have the same name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            HistogramVec::new(options, &["kind"])
        };
        let make = || -> prometheus::Result<Self> {
            let about = Opts::new("spc_build_info", "The version of spc, as a label")
                .const_label("version", env!("CARGO_PKG_VERSION"));
            let build = IntGauge::with_opts(about)?;
            build.set(1);
            let metrics = Self {
                mounts: IntGaugeVec::new(
                    Opts::new(
                        "spc_mounts",
                        "Mounts of the host by kind and state, as spc ls shows them",
                    ),
                    &["kind", "state"],
                )?,
                probe_success: IntGauge::new(
                    "spc_look_success",
                    "Whether the last probe of the mounts succeeded",
                )?,
                mounting: histogram(
                    "spc_mount_duration_seconds",
                    "Duration of successful mounts",
                )?,
                unmounting: histogram(
                    "spc_umount_duration_seconds",
                    "Duration of successful unmounts",
                )?,
                repairs: IntCounterVec::new(
                    Opts::new("spc_repairs_total", "Dead mounts that were replaced"),
                    &["kind"],
                )?,
                failures: IntCounterVec::new(
                    Opts::new("spc_failures_total", "Failed operations by reason"),
                    &["operation", "kind", "reason"],
                )?,
                last_probe: Mutex::new(None),
                started: Instant::now(),
                last_loop: AtomicU64::new(0),
                registry: registry.clone(),
            };
            registry.register(Box::new(build))?;
            registry.register(Box::new(metrics.mounts.clone()))?;
            registry.register(Box::new(metrics.probe_success.clone()))?;
            registry.register(Box::new(metrics.mounting.clone()))?;
            registry.register(Box::new(metrics.unmounting.clone()))?;
            registry.register(Box::new(metrics.repairs.clone()))?;
            registry.register(Box::new(metrics.failures.clone()))?;
            Ok(metrics)
        };
        make().map_err(|e| Error::system("cannot create the metrics").because(e.to_string()))
    }

    /// Counts a report of a command.
    pub fn count(&self, report: &Report) {
        let kind = label(&report.fs_type);
        match (&report.failure, report.operation) {
            (Some(failure), operation) => {
                let labels = [operation.word(), kind, failure.reason.word()];
                self.failures.with_label_values(&labels).inc();
            }
            (None, Operation::Mount) => {
                let histogram = self.mounting.with_label_values(&[kind]);
                histogram.observe(report.seconds);
            }
            (None, Operation::Umount) => {
                let histogram = self.unmounting.with_label_values(&[kind]);
                histogram.observe(report.seconds);
            }
            (None, Operation::Repair) => self.repairs.with_label_values(&[kind]).inc(),
        }
    }

    /// Records that the loop of `spc serve` has finished a pass. `watching` says whether the host is
    /// watched.
    pub fn heartbeat(&self, watching: bool) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_loop
            .store(if watching { now.max(1) } else { 0 }, Ordering::Relaxed);
    }

    /// Returns why `spc serve` is unhealthy, or `None` if it is healthy.
    pub fn unhealthy_reason(&self) -> Option<&'static str> {
        let age = |millis| (self.started + Duration::from_millis(millis)).elapsed();
        match self.last_loop.load(Ordering::Relaxed) {
            0 => Some("the mounts of the host are not being watched; the log has the reason"),
            millis if age(millis) > MAX_HEARTBEAT_AGE => {
                Some("the watch loop has not finished a pass for 3 minutes")
            }
            _ => None,
        }
    }

    /// Returns all metrics in the text format of Prometheus. Probes the mounts if the last probe is
    /// older than 5 s.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub fn text(&self) -> Result<Vec<u8>> {
        // Concurrent requests wait for one probe.
        let mut last_probe = self
            .last_probe
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last_probe.is_none_or(|at| at.elapsed() > MAX_AGE) {
            self.update_mounts();
            *last_probe = Some(Instant::now());
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|e| Error::system("cannot encode the metrics").because(e.to_string()))?;
        Ok(text)
    }

    /// Probes the mounts and sets their gauges.
    fn update_mounts(&self) {
        let listed = list_mounts().inspect_err(|error| tracing::warn!("{error}"));
        self.probe_success.set(i64::from(listed.is_ok()));
        // After a failure there is no series: the states are unknown.
        self.mounts.reset();
        for (kind, mounts) in listed.map(|listed| listed.0).unwrap_or_default() {
            // States without a mount get a series with the value 0, so that queries have a result.
            for state in Health::ALL.map(Health::word) {
                let gauge = self.mounts.with_label_values(&[kind, state]);
                gauge.set(mounts.get(state).copied().unwrap_or_default());
            }
        }
    }
}

/// Runs `spc ls --json` and counts the mounts.
///
/// A separate process probes the mounts, so that no thread of `spc serve` hangs with the host. The
/// exit code is not used: the main loop may reap the process first.
fn list_mounts() -> Result<Counts> {
    let fail = || Error::system("cannot list the mounts");
    let system = |e: std::io::Error| fail().because(e);
    let mut child = Command::new("/proc/self/exe")
        .args(["ls", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(system)?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let Some(output) = child.stdout.take() else {
        return Err(fail());
    };
    let (sender, result) = mpsc::channel();
    let read = move || {
        let counted = serde_json::from_reader(BufReader::new(output));
        // The receiver is gone after the timeout.
        let _ = sender.send(counted);
    };
    std::thread::Builder::new().spawn(read).map_err(system)?;
    let counted = result.recv_timeout(LIMIT);
    if counted.is_err()
        && let Ok(pidfd) = &pidfd
    {
        // An error means that the process has ended.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    // This thread or the main loop reaps the process, unless the process is in uninterruptible
    // sleep.
    if let Ok(pidfd) = &pidfd {
        crate::process::marks::exited(pidfd, LIMIT);
    }
    let _ = child.try_wait();
    counted
        .map_err(|_| {
            fail().because(format!(
                "`spc ls` did not finish within {} s",
                LIMIT.as_secs()
            ))
        })?
        .map_err(|e: serde_json::Error| fail().because(e).hint("run `spc ls` to see the error"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::state::events::Failure;

    #[test]
    fn operations_are_counted_by_kind_and_failures_by_reason() {
        let metrics = Metrics::new().unwrap();
        let report = |operation, fs_type: &str, failure: Option<Reason>| Report {
            request: String::new(),
            operation,
            target: "/mnt".into(),
            fs_type: fs_type.into(),
            seconds: 0.07,
            failure: failure.map(|reason| Failure {
                reason,
                error: String::new(),
            }),
        };
        metrics.count(&report(Operation::Mount, "nfs", None));
        metrics.count(&report(Operation::Mount, "fuse.whatever", None));
        metrics.count(&report(Operation::Umount, "", None));
        metrics.count(&report(Operation::Repair, "glusterfs", None));
        for fs_type in ["made-up", "another"] {
            metrics.count(&report(Operation::Mount, fs_type, Some(Reason::Timeout)));
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&metrics.registry.gather(), &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "spc_mount_duration_seconds_bucket{kind=\"nfs\",le=\"0.05\"} 0",
            "spc_mount_duration_seconds_bucket{kind=\"nfs\",le=\"0.1\"} 1",
            "spc_mount_duration_seconds_count{kind=\"fuse\"} 1",
            "spc_umount_duration_seconds_sum{kind=\"other\"} 0.07",
            "spc_repairs_total{kind=\"glusterfs\"} 1",
            "spc_failures_total{kind=\"other\",operation=\"mount\",reason=\"timeout\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line} in {text}"
            );
        }
    }

    #[test]
    fn listed_mounts_are_counted_by_kind_and_state() {
        let text = r#"[{"type": "nfs", "state": "ok", "age": 1}, {"type": "nfs", "state": "hung"},
            {"type": "fuse.x", "state": "ok"}, {"type": "nfs", "state": "ok"}]"#;
        let counts: Counts = serde_json::from_str(text).unwrap();
        let count = |kind: &str, state: &str| counts.0[kind].get(state).copied();
        assert_eq!(
            (count("nfs", "ok"), count("nfs", "hung")),
            (Some(2), Some(1))
        );
        assert_eq!(
            (count("fuse", "ok"), count("fuse", "hung")),
            (Some(1), None)
        );
        assert!(serde_json::from_str::<Counts>("{}").is_err());
        assert!(serde_json::from_str::<Counts>(r#"[{"type": "nfs"}"#).is_err());
    }

    #[test]
    fn metrics_are_served_when_the_mounts_cannot_be_listed() {
        // The program of this test is not `spc`, and has no command `ls`.
        let text = String::from_utf8(Metrics::new().unwrap().text().unwrap()).unwrap();
        assert!(text.contains("\nspc_look_success 0\n"), "{text}");
        assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    }

    #[test]
    fn serve_is_healthy_after_a_heartbeat_with_the_host_watched() {
        let metrics = Metrics::new().unwrap();
        assert!(metrics.unhealthy_reason().is_some());
        metrics.heartbeat(true);
        assert_eq!(metrics.unhealthy_reason(), None);
        metrics.heartbeat(false);
        assert!(metrics.unhealthy_reason().is_some());
    }
}
