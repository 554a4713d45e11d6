//! What `spc serve` counts and measures, as Prometheus reads it.

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
use crate::liveness::probe::Health;
use crate::state::events::{Operation, Report};

/// The form of the text.
pub const FORM: &str = prometheus::TEXT_FORMAT;

/// How old a look at the mounts may be: it takes a process for each.
const FRESH: Duration = Duration::from_secs(5);

/// How long a look at all mounts may take; each has a limit of its own.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the watch over the mounts may take for one round. It rests for a minute at most.
const ROUND: Duration = Duration::from_secs(180);

/// From a mount of the kernel to the default limit.
const SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 120.0,
];

/// Counters since the start of `spc serve`, and what there is now.
pub struct Metrics {
    registry: Registry,
    mounts: IntGaugeVec,
    look: IntGauge,
    mounting: HistogramVec,
    unmounting: HistogramVec,
    repairs: IntCounterVec,
    failures: IntCounterVec,
    /// When the mounts were last looked at.
    looked: Mutex<Option<Instant>>,
    started: Instant,
    /// Milliseconds after the start at which the watch last came round; 0 while it is not on.
    round: AtomicU64,
}

/// A mount as `spc ls --json` shows it; there is more, which is not counted.
#[derive(Deserialize)]
struct Listed {
    r#type: String,
    state: String,
}

/// How many mounts there are of each kind, in each state: not each of them is kept.
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
        while let Some(Listed { r#type, state }) = list.next_element()? {
            let of_kind = self.0.entry(label(&r#type)).or_default();
            *of_kind.entry(state).or_default() += 1;
        }
        Ok(self)
    }
}

impl Metrics {
    /// Nothing has happened yet.
    ///
    /// # Errors
    /// Two metrics have one name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
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
                look: IntGauge::new(
                    "spc_look_success",
                    "Whether the last look at the mounts succeeded",
                )?,
                mounting: histogram(
                    "spc_mount_duration_seconds",
                    "How long mounts took that were made",
                )?,
                unmounting: histogram(
                    "spc_umount_duration_seconds",
                    "How long it took to take mounts away",
                )?,
                repairs: IntCounterVec::new(
                    Opts::new("spc_repairs_total", "Dead mounts that were replaced"),
                    &["kind"],
                )?,
                failures: IntCounterVec::new(
                    Opts::new("spc_failures_total", "Operations that failed, and why"),
                    &["operation", "kind", "reason"],
                )?,
                looked: Mutex::new(None),
                started: Instant::now(),
                round: AtomicU64::new(0),
                registry: registry.clone(),
            };
            registry.register(Box::new(build))?;
            registry.register(Box::new(metrics.mounts.clone()))?;
            registry.register(Box::new(metrics.look.clone()))?;
            registry.register(Box::new(metrics.mounting.clone()))?;
            registry.register(Box::new(metrics.unmounting.clone()))?;
            registry.register(Box::new(metrics.repairs.clone()))?;
            registry.register(Box::new(metrics.failures.clone()))?;
            Ok(metrics)
        };
        make().map_err(|e| Error::system("cannot make the metrics").because(e.to_string()))
    }

    /// A command has done something.
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

    /// The watch over the mounts has come round, and is on or not.
    pub fn heartbeat(&self, on: bool) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.round
            .store(if on { now.max(1) } else { 0 }, Ordering::Relaxed);
    }

    /// What keeps `spc serve` from its work, if anything.
    pub fn unhealthy_reason(&self) -> Option<&'static str> {
        let ago = |round| {
            let at = self.started + Duration::from_millis(round);
            at.elapsed()
        };
        match self.round.load(Ordering::Relaxed) {
            0 => Some("the host's mounts are not watched; the log says why"),
            round if ago(round) > ROUND => Some("the watch over the mounts does not come round"),
            _ => None,
        }
    }

    /// All of it as text, with the mounts as they were not long ago.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn text(&self) -> Result<Vec<u8>> {
        // Whoever else asks waits for the same look.
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|at| at.elapsed() > FRESH) {
            self.look();
            *looked = Some(Instant::now());
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|e| Error::system("cannot write the metrics").because(e.to_string()))?;
        Ok(text)
    }

    fn look(&self) {
        let listed = list().inspect_err(|error| tracing::warn!("{error}"));
        self.look.set(i64::from(listed.is_ok()));
        // Mounts that nobody could look at are in no state.
        self.mounts.reset();
        for (kind, mounts) in listed.map(|listed| listed.0).unwrap_or_default() {
            // A state in which there is none is worth a line: whoever asks for it gets 0, not nothing.
            for state in Health::ALL.map(Health::word) {
                let gauge = self.mounts.with_label_values(&[kind, state]);
                gauge.set(mounts.get(state).copied().unwrap_or_default());
            }
        }
    }
}

/// What `spc ls --json` says. The threads of another process look, so that a host that hangs takes none of ours along; its
/// exit code may be reaped by somebody else, and is not needed.
fn list() -> Result<Counts> {
    let fail = || Error::system("cannot look at the mounts");
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
    let (done, answer) = mpsc::channel();
    let read = move || {
        let counted = serde_json::from_reader(BufReader::new(output));
        // Whoever waited may have given up.
        let _ = done.send(counted);
    };
    std::thread::Builder::new().spawn(read).map_err(system)?;
    let counted = answer.recv_timeout(LIMIT);
    if counted.is_err()
        && let Ok(pidfd) = &pidfd
    {
        // It may have ended by itself.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    // Reaped here, or by whoever reaps everything; one that no signal ends is left behind.
    if let Ok(pidfd) = &pidfd {
        crate::process::marks::ended(pidfd, LIMIT);
    }
    let _ = child.try_wait();
    counted
        .map_err(|_| fail().because(format!("no answer in {} s", LIMIT.as_secs())))?
        .map_err(|e: serde_json::Error| fail().because(e).hint("`spc ls` says more"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::state::events::Failure;

    #[test]
    fn what_was_done_is_counted_by_kind_and_reason() {
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
    fn mounts_are_counted_as_they_are_read() {
        let text = r#"[{"type": "nfs", "state": "ok", "age": 1}, {"type": "nfs", "state": "hung"},
            {"type": "fuse.x", "state": "ok"}, {"type": "nfs", "state": "ok"}]"#;
        let counts: Counts = serde_json::from_str(text).unwrap();
        let of = |kind: &str, state: &str| counts.0[kind].get(state).copied();
        assert_eq!((of("nfs", "ok"), of("nfs", "hung")), (Some(2), Some(1)));
        assert_eq!((of("fuse", "ok"), of("fuse", "hung")), (Some(1), None));
        assert!(serde_json::from_str::<Counts>("{}").is_err());
        assert!(serde_json::from_str::<Counts>(r#"[{"type": "nfs"}"#).is_err());
    }

    #[test]
    fn there_is_a_text_even_if_nobody_can_look() {
        // This program is not `spc`, and knows no `ls`.
        let text = String::from_utf8(Metrics::new().unwrap().text().unwrap()).unwrap();
        assert!(text.contains("\nspc_look_success 0\n"), "{text}");
        assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    }

    #[test]
    fn it_is_well_while_the_watch_comes_round() {
        let metrics = Metrics::new().unwrap();
        assert!(metrics.unhealthy_reason().is_some());
        metrics.heartbeat(true);
        assert_eq!(metrics.unhealthy_reason(), None);
        metrics.heartbeat(false);
        assert!(metrics.unhealthy_reason().is_some());
    }
}
