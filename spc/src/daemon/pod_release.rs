//! Starts the search for volumes that keep pods from ending.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::repair_scheduler::RepairScheduler;
use crate::recovery::ended_pods::pod_of;

/// Shortest time between two searches. A reconcile pass without a change is less frequent.
const INTERVAL: Duration = Duration::from_secs(30);

/// Time of the last search.
#[derive(Default)]
pub struct PodRelease {
    last: Option<Instant>,
}

impl PodRelease {
    /// Starts `spc release-pods` if a pod has a volume with a daemon and the interval is over.
    /// `spc serve` reaps it with all other children.
    pub fn start_if_due(&mut self, repairs: &RepairScheduler) {
        let of_pod = |target: &str| pod_of(Path::new(target)).is_some();
        let waits = self.last.is_some_and(|last| last.elapsed() < INTERVAL);
        if waits || !repairs.targets().any(of_pod) {
            return;
        }
        self.last = Some(Instant::now());
        let mut command = Command::new("/proc/self/exe");
        if let Err(error) = command.arg("release-pods").stdin(Stdio::null()).spawn() {
            tracing::warn!("cannot look for volumes of pods that have ended: {error}");
        }
    }
}
