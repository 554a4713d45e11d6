//! Plays kubelet for the CSI drivers: a gRPC client on their sockets, and the directories that
//! kubelet makes. Order and arguments of the calls follow kubernetes' `pkg/volume/csi`.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use lab::{Base, Engine, Lab, Propagation};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::kubernetes::kubelet::ROOT;
use crate::support::{MINIMAL, Spc, until};

use self::proto::identity_client::IdentityClient;
use self::proto::node_client::NodeClient;
pub use self::proto::volume_capability::access_mode::Mode;
use self::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use self::registration::registration_client::RegistrationClient;

/// Messages of CSI.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("csi.v1");
}

/// Messages of kubelet's registration.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

pub const SHARE: &str = "share.spc.csi";
pub const MAPPED: &str = "mapped.spc.csi";
pub const DISK: &str = "disk.spc.csi";

/// kubelet's limit of a call.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Starts the container with the drivers, on a host of its own.
pub fn serve(lab: &Lab) -> Result<Spc<'_>> {
    let spc = Spc::loaded(lab, Propagation::Shared, Engine::Docker, Base::Trixie)?;
    start(&spc)?;
    Ok(spc)
}

/// Starts the container with the drivers, and waits for their registration.
pub fn start(spc: &Spc<'_>) -> Result<()> {
    let run = ["docker", "run", "-d", "--name", "spc"];
    let serve = [
        Base::Trixie.image(),
        "spc",
        "serve",
        "--csi",
        "--node-id=node-1",
    ];
    spc.host.run(&[&run[..], &MINIMAL, &serve].concat())?.ok()?;
    until("the drivers are there", || {
        Ok(spc.log()?.contains("serving CSI"))
    })
}

/// Path of a file of the host, for a process outside.
pub fn outside(spc: &Spc<'_>, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", spc.host.pid()))
}

/// Client of one driver.
pub struct Client {
    pub driver: &'static str,
    runtime: Runtime,
    channel: Channel,
}

/// Volume of a PersistentVolume, or in a pod.
#[derive(Clone, Debug, Default)]
pub struct CsiVolume {
    pub id: String,
    pub fs_type: String,
    pub attributes: HashMap<String, String>,
    pub secrets: HashMap<String, String>,
    pub mount_options: Vec<String>,
    pub mode: Option<Mode>,
    pub group: String,
    pub read_only: bool,
}

impl CsiVolume {
    pub fn new(id: &str, fs_type: &str, attributes: &[(&str, &str)]) -> Self {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Self {
            id: id.to_owned(),
            fs_type: fs_type.to_owned(),
            attributes: attributes.iter().map(own).collect(),
            ..Self::default()
        }
    }

    pub fn secret(mut self, key: &str, value: &str) -> Self {
        self.secrets.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    fn capability(&self) -> proto::VolumeCapability {
        let mode = self.mode.unwrap_or(Mode::MultiNodeMultiWriter);
        proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: self.group.clone(),
            })),
        }
    }

    /// Attributes with those that kubelet adds for `podInfoOnMount`.
    fn context(&self, ephemeral: bool) -> HashMap<String, String> {
        let mut context = self.attributes.clone();
        for (key, value) in [
            ("ephemeral", if ephemeral { "true" } else { "false" }),
            ("pod.name", "web-1"),
            ("pod.namespace", "default"),
            ("pod.uid", "1-2"),
            ("serviceAccount.name", "default"),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
        context
    }

    /// Directory where kubelet has the volume staged.
    pub fn staging(&self, driver: &str) -> String {
        let digest = Sha256::digest(self.id.as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{ROOT}/plugins/kubernetes.io/csi/{driver}/{name}/globalmount")
    }
}

/// Directory where kubelet has a volume published for a pod.
pub fn target(pod: &str) -> String {
    format!("{ROOT}/pods/{pod}/volumes/kubernetes.io~csi/data/mount")
}

type Reply<T> = std::result::Result<T, Status>;

impl Client {
    /// Plays the registration, and returns a client of the driver.
    pub fn register(spc: &Spc<'_>, driver: &'static str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let socket = format!("{ROOT}/plugins_registry/{driver}-reg.sock");
        let channel = connect(&runtime, outside(spc, &socket))?;
        let mut kubelet = RegistrationClient::new(channel);
        let info = runtime.block_on(kubelet.get_info(registration::InfoRequest {}))?;
        let info = info.into_inner();
        ensure!(
            info.r#type == "CSIPlugin" && info.name == driver,
            "{info:?}"
        );
        ensure!(info.supported_versions == ["1.0.0"], "{info:?}");
        let channel = connect(&runtime, outside(spc, &info.endpoint))?;
        let client = Self {
            driver,
            runtime,
            channel,
        };
        let node = client.call(
            LIMIT,
            proto::NodeGetInfoRequest {},
            |mut node, r| async move { node.node_get_info(r).await },
        )?;
        ensure!(node.node_id == "node-1", "{node:?}");
        let status = registration::RegistrationStatus {
            plugin_registered: true,
            error: String::new(),
        };
        client
            .runtime
            .block_on(kubelet.notify_registration_status(status))?;
        Ok(client)
    }

    /// Makes a call to the node service, with kubelet's way to send the limit.
    pub fn call<Q, A, F>(
        &self,
        limit: Duration,
        message: Q,
        call: impl FnOnce(NodeClient<Channel>, Request<Q>) -> F,
    ) -> Reply<A>
    where
        F: Future<Output = Reply<Response<A>>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        let node = NodeClient::new(self.channel.clone());
        let answer = self.runtime.block_on(call(node, request))?;
        Ok(answer.into_inner())
    }

    /// Client of the identity service.
    pub fn identity<A, F>(&self, call: impl FnOnce(IdentityClient<Channel>) -> F) -> Reply<A>
    where
        F: Future<Output = Reply<Response<A>>>,
    {
        let identity = IdentityClient::new(self.channel.clone());
        let answer = self.runtime.block_on(call(identity))?;
        Ok(answer.into_inner())
    }

    /// Request to stage a volume.
    pub fn stage_request(&self, volume: &CsiVolume) -> proto::NodeStageVolumeRequest {
        proto::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging(self.driver),
            volume_capability: Some(volume.capability()),
            secrets: volume.secrets.clone(),
            volume_context: volume.context(false),
        }
    }

    /// Request to publish a staged volume for a pod.
    pub fn publish_request(
        &self,
        volume: &CsiVolume,
        pod: &str,
    ) -> proto::NodePublishVolumeRequest {
        proto::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging(self.driver),
            target_path: target(pod),
            volume_capability: Some(volume.capability()),
            readonly: volume.read_only,
            secrets: HashMap::new(),
            volume_context: volume.context(false),
        }
    }

    /// Makes the staging directory as kubelet does, and stages the volume.
    pub fn stage(&self, spc: &Spc<'_>, volume: &CsiVolume) -> Result<Reply<()>> {
        let staging = volume.staging(self.driver);
        spc.host
            .run(&["mkdir", "-p", "-m", "0750", &staging])?
            .ok()?;
        Ok(self.stage_within(LIMIT, volume))
    }

    /// Stages the volume within a limit.
    pub fn stage_within(&self, limit: Duration, volume: &CsiVolume) -> Reply<()> {
        self.stage_request_within(limit, self.stage_request(volume))
    }

    /// Stages with this request.
    pub fn stage_as(&self, request: proto::NodeStageVolumeRequest) -> Reply<()> {
        self.stage_request_within(LIMIT, request)
    }

    fn stage_request_within(
        &self,
        limit: Duration,
        request: proto::NodeStageVolumeRequest,
    ) -> Reply<()> {
        let call = |mut node: NodeClient<_>, r| async move { node.node_stage_volume(r).await };
        self.call(limit, request, call).map(drop)
    }

    /// Makes the parent of the target as kubelet does, and publishes the volume.
    pub fn publish(&self, spc: &Spc<'_>, volume: &CsiVolume, pod: &str) -> Result<Reply<()>> {
        self.prepare(spc, pod)?;
        Ok(self.publish_as(self.publish_request(volume, pod)))
    }

    /// Makes the parent of a target.
    pub fn prepare(&self, spc: &Spc<'_>, pod: &str) -> Result<()> {
        let parent = target(pod);
        let parent = parent.trim_end_matches("/mount");
        spc.host.run(&["mkdir", "-p", "-m", "0750", parent])?.ok()?;
        Ok(())
    }

    /// Publishes with this request.
    pub fn publish_as(&self, request: proto::NodePublishVolumeRequest) -> Reply<()> {
        let call = |mut node: NodeClient<_>, r| async move { node.node_publish_volume(r).await };
        self.call(LIMIT, request, call).map(drop)
    }

    /// Publishes an inline volume for a pod.
    pub fn publish_inline(
        &self,
        spc: &Spc<'_>,
        volume: &CsiVolume,
        pod: &str,
    ) -> Result<Reply<()>> {
        self.prepare(spc, pod)?;
        Ok(self.publish_as(self.inline_request(volume, pod)))
    }

    /// Request to publish an inline volume for a pod.
    pub fn inline_request(&self, volume: &CsiVolume, pod: &str) -> proto::NodePublishVolumeRequest {
        proto::NodePublishVolumeRequest {
            staging_target_path: String::new(),
            secrets: volume.secrets.clone(),
            volume_context: volume.context(true),
            ..self.publish_request(volume, pod)
        }
    }

    /// Unpublishes a volume.
    pub fn unpublish(&self, volume: &CsiVolume, pod: &str) -> Reply<()> {
        let request = proto::NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: target(pod),
        };
        let call = |mut node: NodeClient<_>, r| async move { node.node_unpublish_volume(r).await };
        self.call(LIMIT, request, call).map(drop)
    }

    /// Unstages a volume.
    pub fn unstage(&self, volume: &CsiVolume) -> Reply<()> {
        let request = proto::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging(self.driver),
        };
        let call = |mut node: NodeClient<_>, r| async move { node.node_unstage_volume(r).await };
        self.call(LIMIT, request, call).map(drop)
    }

    /// Looks at a volume.
    pub fn stats(
        &self,
        volume: &CsiVolume,
        path: &str,
    ) -> Reply<proto::NodeGetVolumeStatsResponse> {
        let request = proto::NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: path.to_owned(),
        };
        let call = |mut node: NodeClient<_>, r| async move { node.node_get_volume_stats(r).await };
        self.call(LIMIT, request, call)
    }

    /// Grows a volume to this number of bytes.
    pub fn expand(&self, volume: &CsiVolume, path: &str, bytes: i64) -> Reply<i64> {
        let request = proto::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: path.to_owned(),
            capacity_range: Some(proto::CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
        };
        let call = |mut node: NodeClient<_>, r| async move { node.node_expand_volume(r).await };
        let answer = self.call(LIMIT, request, call)?;
        Ok(answer.capacity_bytes)
    }

    /// Numbers of the node service's capabilities.
    pub fn capabilities(&self) -> Result<Vec<i32>> {
        let call = |mut node: NodeClient<_>, r| async move { node.node_get_capabilities(r).await };
        let answer = self.call(LIMIT, proto::NodeGetCapabilitiesRequest {}, call)?;
        let numbers = answer.capabilities.into_iter().map(|capability| {
            let proto::node_service_capability::Type::Rpc(rpc) = capability.r#type?;
            Some(rpc.r#type)
        });
        numbers.collect::<Option<_>>().context("an empty one")
    }
}

/// Connects to a socket.
pub fn connect(runtime: &Runtime, socket: PathBuf) -> Result<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?))
        }
    });
    // grpc-go names every Unix socket so.
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(runtime.block_on(endpoint.connect_with_connector(connector))?)
}

/// Fails unless a call failed with this code, and words of its reason.
#[track_caller]
pub fn refused(reply: Reply<()>, code: Code, words: &str) -> Result<()> {
    let status = reply.err().context("the call succeeded")?;
    ensure!(
        status.code() == code && status.message().contains(words) && status.details().is_empty(),
        "expected {code:?} and {words:?}: {status:?}"
    );
    Ok(())
}

/// Record of a target, as it is in the ledger.
pub fn record(spc: &Spc<'_>, target: &str) -> Result<serde_json::Value> {
    let records = spc.host.sh("cat /run/spc/mounts/*.json")?.ok()?.text();
    let records = serde_json::Deserializer::from_str(&records).into_iter::<serde_json::Value>();
    let records = records.collect::<Result<Vec<_>, _>>()?;
    let found = records
        .into_iter()
        .find(|record| record["target"] == target);
    found.with_context(|| format!("no record of {target}"))
}

/// Volume in memory.
pub fn memory(id: &str) -> CsiVolume {
    CsiVolume::new(id, "tmpfs", &[("source", id), ("options", "size=8m")])
}

/// Waits until no mount has left anything.
pub fn is_clean(spc: &Spc<'_>) -> Result<()> {
    until("nothing is left", || Ok(spc.is_clean().is_ok()))
}
