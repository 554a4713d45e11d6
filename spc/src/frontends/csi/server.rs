//! Services of a driver: each call that needs the host gets a worker process, and an answer before
//! its deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::error::Error;
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::job::{Answer, Call, Job};
use crate::frontends::csi::proto::csi::identity_server::Identity;
use crate::frontends::csi::proto::csi::node_server::Node;
use crate::frontends::csi::proto::csi::node_service_capability::rpc::Type as Rpc;
use crate::frontends::csi::proto::csi::plugin_capability::{VolumeExpansion, volume_expansion};
use crate::frontends::csi::proto::csi::volume_usage::Unit;
use crate::frontends::csi::proto::csi::{self, node_service_capability, plugin_capability};
use crate::frontends::csi::stats::{Figures, Stats, Usage};
use crate::frontends::csi::validate;
use crate::host::namespace::missing_capabilities;
use crate::volume::worker::{self, ROLLBACK_TIME, WorkerCall};

/// Limit of a call without `grpc-timeout`, which is kubelet's limit.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Time that is kept of a call's limit to undo what was begun.
const UNDO_TIME: Duration = Duration::from_secs(5);

/// Time that is kept of a call's limit to send the answer.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Time for an answer about a volume, whatever the client's limit.
const STATS_TIME: Duration = Duration::from_millis(1900);

/// Number of worker processes of each group at the same time. Further calls wait.
const MAX_WORKERS: usize = 32;

/// Services of one driver.
#[derive(Clone)]
pub struct Service {
    driver: Driver,
    node_id: Arc<str>,
    workers: Arc<Semaphore>,
    /// Workers that mount volumes of pods, whose servers may be silent on purpose. Other calls do
    /// not wait for them.
    inline: Arc<Semaphore>,
    /// Workers that look at volumes, for which mounts do not wait, nor they for mounts.
    lookers: Arc<Semaphore>,
    /// Last figures of each volume that has some, by its directory.
    figures: Arc<Mutex<HashMap<String, Figures>>>,
}

impl Service {
    /// Returns the services of a driver on a node.
    pub fn new(driver: Driver, node_id: &str) -> Self {
        Self {
            driver,
            node_id: node_id.into(),
            workers: Arc::new(Semaphore::new(MAX_WORKERS)),
            inline: Arc::new(Semaphore::new(MAX_WORKERS)),
            lookers: Arc::new(Semaphore::new(MAX_WORKERS)),
            figures: Arc::default(),
        }
    }

    /// Does a call in a worker process. If the worker needs longer than the call may take, ABORTED
    /// says so, and the work goes on.
    pub(super) async fn work(
        &self,
        metadata: &MetadataMap,
        call: (String, Call),
    ) -> Result<Answer, Status> {
        let timeout = grpc_timeout(metadata).unwrap_or(DEFAULT_TIMEOUT);
        let answer_at = Instant::now() + timeout.saturating_sub(ANSWER_TIME);
        let slots = match call.1 {
            Call::Inline { .. } => &self.inline,
            _ => &self.workers,
        };
        self.work_until(answer_at, slots, call).await
    }

    /// Does a call in a worker process that takes one of these slots, and answers at `answer_at`.
    async fn work_until(
        &self,
        answer_at: Instant,
        slots: &Arc<Semaphore>,
        (volume_id, call): (String, Call),
    ) -> Result<Answer, Status> {
        let going_on =
            |_| Status::aborted("the call takes longer than its deadline; spc goes on with it");
        let slot = Arc::clone(slots).acquire_owned();
        let slot = tokio::time::timeout_at(answer_at.into(), slot).await;
        let slot = slot.map_err(going_on)?;
        let limit = answer_at
            .saturating_duration_since(Instant::now())
            .saturating_sub(UNDO_TIME.saturating_sub(ANSWER_TIME))
            .max(Duration::from_secs(1));
        let job = Job {
            driver: self.driver,
            volume_id,
            milliseconds: limit.as_millis().try_into().unwrap_or(u64::MAX),
            call,
        };
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let answer = run_worker(&job, limit + ROLLBACK_TIME);
            drop(slot);
            // The receiver is gone after the deadline, or with kubelet.
            let _ = sender.send(answer);
        };
        std::thread::Builder::new()
            .name("csi-call".into())
            .spawn(work)
            .map_err(|e| Status::unavailable(format!("cannot start a thread: {e}")))?;
        match tokio::time::timeout_at(answer_at.into(), receiver).await {
            Ok(Ok(answer)) if answer.code == 0 => Ok(answer),
            Ok(Ok(answer)) => Err(Status::new(Code::from(answer.code), answer.message)),
            Ok(Err(_)) => Err(Status::aborted("the thread of the call has ended")),
            Err(elapsed) => Err(going_on(elapsed)),
        }
    }
}

impl Service {
    /// Forgets the figures of a volume that goes.
    fn forget(&self, target: &str) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.remove(target);
    }
}

/// Runs a worker to its end, and returns its answer.
pub(super) fn run_worker(job: &Job, limit: Duration) -> Answer {
    let failed = |error: Error| Answer::failure(Code::Aborted, error);
    let input = match serde_json::to_string(job) {
        Ok(input) => input,
        Err(error) => return failed(Error::system("cannot start the worker").because(error)),
    };
    let call = WorkerCall {
        words: &["csi-work"],
        input: &input,
        limit,
        logs_here: true,
    };
    match worker::run(&call, None) {
        Ok(end) => Answer::read(&end.stdout).unwrap_or_else(|| failed(end.no_reply())),
        Err(error) => failed(error),
    }
}

/// Returns the time limit that the client has sent: up to eight digits and a unit.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.driver.name().into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let online = VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        };
        let online = csi::PluginCapability {
            r#type: Some(plugin_capability::Type::VolumeExpansion(online)),
        };
        let grows = self.driver == Driver::Disk;
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities: grows.then_some(online).into_iter().collect(),
        }))
    }

    async fn probe(
        &self,
        _: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        let missing = missing_capabilities().map_err(|e| Status::internal(e.to_string()))?;
        match missing.first() {
            None => Ok(Response::new(csi::ProbeResponse { ready: Some(true) })),
            Some((name, why)) => Err(Status::failed_precondition(format!(
                "capability CAP_{name} is missing: it is needed {why}"
            ))),
        }
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let call = validate::stage(self.driver, request)?;
        self.work(&metadata, call).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("staging_target_path", &request.staging_target_path)?;
        self.forget(&target);
        self.work(&metadata, (id, Call::Unstage { target })).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let call = validate::publish(self.driver, request)?;
        self.work(&metadata, call).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("target_path", &request.target_path)?;
        self.forget(&target);
        self.work(&metadata, (id, Call::Unpublish { target }))
            .await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("volume_path", &request.volume_path)?;
        let call = Call::Stats {
            target: target.clone(),
        };
        let answer_at = Instant::now() + STATS_TIME;
        let worked = self.work_until(answer_at, &self.lookers, (id, call)).await;
        let stats = match worked {
            Ok(answer) => answer.stats,
            // The worker itself hangs.
            Err(status) if status.code() == Code::Aborted => Stats {
                problem: Some("the volume does not respond".into()),
                ..Stats::default()
            },
            Err(status) => return Err(status),
        };
        let figures = {
            let mut last = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            match stats.figures {
                Some(figures) => {
                    last.insert(target, figures);
                    Some(figures)
                }
                None => last.get(&target).copied(),
            }
        };
        let usage = |figures: Usage, unit: Unit| csi::VolumeUsage {
            available: figures.available,
            total: figures.total,
            used: figures.used,
            unit: unit.into(),
        };
        let usages = figures.map(|Figures { bytes, inodes }| {
            vec![usage(bytes, Unit::Bytes), usage(inodes, Unit::Inodes)]
        });
        Ok(Response::new(csi::NodeGetVolumeStatsResponse {
            usage: usages.unwrap_or_default(),
            volume_condition: Some(csi::VolumeCondition {
                abnormal: stats.problem.is_some(),
                message: stats
                    .problem
                    .unwrap_or_else(|| "the volume responds".into()),
            }),
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        if self.driver != Driver::Disk {
            return Err(Status::unimplemented("only disks grow"));
        }
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("volume_path", &request.volume_path)?;
        let wanted = request.capacity_range.unwrap_or_default().required_bytes;
        let bytes = wanted
            .try_into()
            .map_err(|_| Status::invalid_argument("required_bytes is negative"))?;
        let call = Call::Expand { target, bytes };
        let answer = self.work(&metadata, (id, call)).await?;
        Ok(Response::new(csi::NodeExpandVolumeResponse {
            capacity_bytes: answer.bytes.try_into().unwrap_or(i64::MAX),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability = |rpc: Rpc| csi::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(
                node_service_capability::Rpc { r#type: rpc.into() },
            )),
        };
        let mut all = vec![
            Rpc::StageUnstageVolume,
            Rpc::GetVolumeStats,
            Rpc::VolumeCondition,
            Rpc::SingleNodeMultiWriter,
        ];
        match self.driver {
            Driver::Share => {}
            Driver::Mapped => all.push(Rpc::VolumeMountGroup),
            Driver::Disk => all.push(Rpc::ExpandVolume),
        }
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: all.into_iter().map(capability).collect(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node_id.to_string(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_limit_is_that_of_the_client() {
        let timeout = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata)
        };
        for (text, seconds) in [("120S", 120), ("2M", 120), ("119999999u", 0), ("1H", 3600)] {
            let found = timeout(text);
            assert_eq!(found.is_some(), seconds != 0, "{text}");
            assert_eq!(found.map_or(0, |found| found.as_secs()), seconds, "{text}");
        }
        assert_eq!(
            timeout("99999999u"),
            Some(Duration::from_micros(99_999_999))
        );
        for bad in ["S", "", "-1S", "1s", "1"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
        assert_eq!(grpc_timeout(&MetadataMap::new()), None);
    }
}
