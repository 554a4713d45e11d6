//! Identity and node service of a driver. Each call that needs the host runs in a worker process,
//! and is answered before its deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Limit of a call without `grpc-timeout`, the same as kubelet's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Part of a call's limit that is reserved for a rollback.
const ROLLBACK_RESERVE: Duration = Duration::from_secs(5);

/// Part of a call's limit that is reserved for sending the answer.
const ANSWER_RESERVE: Duration = Duration::from_millis(500);

/// Limit of `NodeGetVolumeStats`, whatever the client's limit.
const STATS_LIMIT: Duration = Duration::from_millis(1900);

/// Largest number of worker processes of each group at the same time. Further calls wait.
const MAX_WORKERS: usize = 32;

/// Result of a call.
pub type GrpcResult<T> = Result<Response<T>, Status>;

/// Services of one driver.
#[derive(Clone)]
pub struct Service {
    driver: Driver,
    node_id: Arc<str>,
    /// Slots for workers of other calls than the ones below.
    workers: Arc<Semaphore>,
    /// Slots for workers that mount inline volumes. Pods choose their servers, which may be silent
    /// on purpose, so other calls do not wait for these workers.
    inline_workers: Arc<Semaphore>,
    /// Slots for workers that collect figures. Figures do not wait for mounts, nor mounts for
    /// figures.
    stats_workers: Arc<Semaphore>,
    /// Last known figures of volumes, by the directory of the volume.
    figures: Arc<Mutex<HashMap<String, Figures>>>,
}

impl Service {
    /// Creates the services of a driver on a node.
    pub fn new(driver: Driver, node_id: &str) -> Self {
        Self {
            driver,
            node_id: node_id.into(),
            workers: Arc::new(Semaphore::new(MAX_WORKERS)),
            inline_workers: Arc::new(Semaphore::new(MAX_WORKERS)),
            stats_workers: Arc::new(Semaphore::new(MAX_WORKERS)),
            figures: Arc::default(),
        }
    }

    /// Runs a call in a worker process. At the deadline of the call it fails with ABORTED, and the
    /// worker continues.
    pub(super) async fn work(
        &self,
        metadata: &MetadataMap,
        volume_id: String,
        call: Call,
    ) -> Result<Answer, Status> {
        let timeout = grpc_timeout(metadata).unwrap_or(DEFAULT_TIMEOUT);
        let answer_at = Instant::now() + timeout.saturating_sub(ANSWER_RESERVE);
        let slots = match call {
            Call::Inline { .. } => &self.inline_workers,
            _ => &self.workers,
        };
        self.work_until(answer_at, slots, volume_id, call).await
    }

    /// Runs a call in a worker process that needs one of `slots`. Returns at `answer_at` at the
    /// latest.
    async fn work_until(
        &self,
        answer_at: Instant,
        slots: &Arc<Semaphore>,
        volume_id: String,
        call: Call,
    ) -> Result<Answer, Status> {
        let unfinished =
            |_| Status::aborted("the call takes longer than its deadline; spc continues it");
        let slot = Arc::clone(slots).acquire_owned();
        let slot = tokio::time::timeout_at(answer_at.into(), slot).await;
        let slot = slot.map_err(unfinished)?;
        let limit = answer_at
            .saturating_duration_since(Instant::now())
            .saturating_sub(ROLLBACK_RESERVE.saturating_sub(ANSWER_RESERVE))
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
            // After the deadline nobody waits for the answer.
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
            Err(elapsed) => Err(unfinished(elapsed)),
        }
    }

    /// Locks the last known figures of volumes.
    fn last_figures(&self) -> MutexGuard<'_, HashMap<String, Figures>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns figures as CSI expresses them.
fn usages(figures: Figures) -> Vec<csi::VolumeUsage> {
    let usage = |usage: Usage, unit: Unit| csi::VolumeUsage {
        available: usage.available,
        total: usage.total,
        used: usage.used,
        unit: unit.into(),
    };
    vec![
        usage(figures.bytes, Unit::Bytes),
        usage(figures.inodes, Unit::Inodes),
    ]
}

/// Runs a worker process and returns its answer.
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
        Ok(end) => Answer::parse(&end.stdout).unwrap_or_else(|| failed(end.no_reply())),
        Err(error) => failed(error),
    }
}

/// Returns the time limit that the client sent: up to eight digits and a unit.
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
    ) -> GrpcResult<csi::GetPluginInfoResponse> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.driver.name().into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> GrpcResult<csi::GetPluginCapabilitiesResponse> {
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

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> GrpcResult<csi::ProbeResponse> {
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
    ) -> GrpcResult<csi::NodeStageVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let (id, call) = validate::stage(self.driver, request)?;
        self.work(&metadata, id, call).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> GrpcResult<csi::NodeUnstageVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("staging_target_path", &request.staging_target_path)?;
        self.last_figures().remove(&target);
        self.work(&metadata, id, Call::Unstage { target }).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> GrpcResult<csi::NodePublishVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let (id, call) = validate::publish(self.driver, request)?;
        self.work(&metadata, id, call).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> GrpcResult<csi::NodeUnpublishVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("target_path", &request.target_path)?;
        self.last_figures().remove(&target);
        self.work(&metadata, id, Call::Unpublish { target }).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> GrpcResult<csi::NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("volume_path", &request.volume_path)?;
        let call = Call::Stats {
            target: target.clone(),
        };
        let answer_at = Instant::now() + STATS_LIMIT;
        let answer = self
            .work_until(answer_at, &self.stats_workers, id, call)
            .await;
        let stats = match answer {
            Ok(answer) => answer.stats,
            // The worker itself is blocked.
            Err(status) if status.code() == Code::Aborted => Stats {
                problem: Some("the volume does not respond".into()),
                ..Stats::default()
            },
            Err(status) => return Err(status),
        };
        let figures = match stats.figures {
            Some(figures) => {
                self.last_figures().insert(target, figures);
                Some(figures)
            }
            None => self.last_figures().get(&target).copied(),
        };
        Ok(Response::new(csi::NodeGetVolumeStatsResponse {
            usage: figures.map(usages).unwrap_or_default(),
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
    ) -> GrpcResult<csi::NodeExpandVolumeResponse> {
        if self.driver != Driver::Disk {
            return Err(Status::unimplemented(
                "only volumes of disk.spc.csi grow on the node",
            ));
        }
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let target = validate::path("volume_path", &request.volume_path)?;
        let wanted = request.capacity_range.unwrap_or_default().required_bytes;
        let bytes = wanted
            .try_into()
            .map_err(|_| Status::invalid_argument("required_bytes is negative"))?;
        let call = Call::Expand { target, bytes };
        let answer = self.work(&metadata, id, call).await?;
        Ok(Response::new(csi::NodeExpandVolumeResponse {
            capacity_bytes: answer.bytes.try_into().unwrap_or(i64::MAX),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> GrpcResult<csi::NodeGetCapabilitiesResponse> {
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
    ) -> GrpcResult<csi::NodeGetInfoResponse> {
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
