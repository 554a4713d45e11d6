//! Controller service: volumes on request, as directories of backends.
//!
//! `spc serve --csi-controller` answers csi-provisioner and csi-resizer, which share a directory
//! with it. Each call gets a worker process, as those of the node service do.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Signal, getpid, kill_process};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::error::{Error, Result, one_line, show};
use crate::frontends::csi::backend_use::BackendUse;
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::job::{Answer, Call, Job};
use crate::frontends::csi::proto::csi::controller_server::{Controller, ControllerServer};
use crate::frontends::csi::proto::csi::controller_service_capability::rpc::Type as Rpc;
use crate::frontends::csi::proto::csi::identity_server::{Identity, IdentityServer};
use crate::frontends::csi::proto::csi::plugin_capability::{
    Service as Extra, VolumeExpansion, service, volume_expansion,
};
use crate::frontends::csi::proto::csi::{self, controller_service_capability, plugin_capability};
use crate::frontends::csi::server::{Service, run_worker};
use crate::frontends::csi::{connection, sockets, validate};
use crate::provision::backends::{self, Backend};
use crate::provision::class::Class;
use crate::provision::notes::Note;
use crate::provision::{self, Task, VolumeId, Work};

/// Interval at which unused backends are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Limit for unmounting a backend.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);

/// Arguments of `spc serve` for the controller service.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Serve the CSI controller of share.spc.csi, which makes volumes on request, at a socket in
    /// the container
    #[arg(long, value_name = "SOCKET", requires = "backends")]
    csi_controller: Option<PathBuf>,
    /// File with the shares on which the controller makes volumes
    #[arg(long, value_name = "FILE", requires = "csi_controller")]
    backends: Option<PathBuf>,
}

/// Running controller. Dropping it unmounts the backends.
pub struct Running {
    socket: PathBuf,
    used: Arc<BackendUse>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        for backend in self.used.stop() {
            let answer = run_worker(&release(&backend), RELEASE_LIMIT);
            if answer.code != 0 {
                tracing::warn!(backend, "the backend stays mounted: {}", answer.message);
            }
        }
    }
}

fn release(backend: &str) -> Job {
    Job {
        driver: Driver::Share,
        volume_id: String::new(),
        milliseconds: RELEASE_LIMIT.as_millis().try_into().unwrap_or(u64::MAX),
        call: Call::Release {
            backend: backend.to_owned(),
        },
    }
}

impl ControllerArgs {
    /// Starts the controller if the arguments ask for it. It is served until the process ends.
    ///
    /// # Errors
    /// The backends are invalid, or the socket or the thread cannot be made.
    pub fn start(self) -> Result<Option<Running>> {
        let (Some(socket), Some(file)) = (self.csi_controller, self.backends) else {
            return Ok(None);
        };
        // An earlier process may have left backends mounted. Unless used again, they are unmounted.
        let used = Arc::new(BackendUse::default());
        for backend in backends::read(&file)? {
            used.seen(&backend.name);
        }
        let listener = sockets::listen(&socket)
            .map_err(|e| Error::system(format!("cannot listen on {}", show(&socket))).because(e))?;
        let service = ControllerService {
            service: Service::new(Driver::Share, ""),
            file: file.into(),
            used: Arc::clone(&used),
        };
        let serve = move || {
            tracing::info!("serving the CSI controller");
            let Err(error) = serve(service, listener) else {
                return;
            };
            tracing::error!(
                "the CSI controller is not served any more, so this process ends: {error}"
            );
            // kubelet or the engine starts it again.
            let _ = kill_process(getpid(), Signal::TERM);
        };
        std::thread::Builder::new()
            .name("csi-controller".into())
            .spawn(serve)
            .map_err(|e| Error::system("cannot start a thread").because(e))?;
        Ok(Some(Running { socket, used }))
    }
}

/// Serves the controller on the calling thread. Does not return unless it fails.
fn serve(service: ControllerService, listener: StdListener) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        tokio::spawn(release_unused(service.clone()));
        let router = Server::builder()
            .add_service(IdentityServer::new(service.clone()))
            .add_service(ControllerServer::new(service));
        let ended = router
            .serve_with_incoming(connection::incoming(listener)?)
            .await;
        Err(std::io::Error::other(match ended {
            Ok(()) => "the server has ended".into(),
            Err(error) => error.to_string(),
        }))
    })
}

/// Unmounts backends that are not used any more, for ever.
async fn release_unused(service: ControllerService) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        for backend in service.used.idle(Instant::now()) {
            let job = release(&backend);
            let call = (job.volume_id, job.call);
            match service.service.work(&MetadataMap::new(), call).await {
                Ok(_) => service.used.released(&backend),
                // A call that outlasted its client may use it.
                Err(status) => {
                    service.used.seen(&backend);
                    tracing::warn!(backend, "the backend stays mounted: {}", status.message());
                }
            }
        }
    }
}

/// Identity and controller service.
#[derive(Clone)]
struct ControllerService {
    service: Service,
    file: Arc<Path>,
    used: Arc<BackendUse>,
}

type Reply<T> = std::result::Result<Response<T>, Status>;

fn unavailable(error: &Error) -> Status {
    tracing::error!("{}", one_line(error));
    Status::unavailable(error.to_string())
}

fn invalid(error: &Error) -> Status {
    Status::invalid_argument(error.to_string())
}

impl ControllerService {
    /// Reads the backends. The file may change while this process runs.
    fn backends(&self) -> std::result::Result<Vec<Backend>, Status> {
        backends::read(&self.file).map_err(|error| unavailable(&error))
    }

    /// Returns the backend with this name, if there is one.
    fn backend(&self, name: &str) -> std::result::Result<Option<Backend>, Status> {
        let mut all = self.backends()?.into_iter();
        Ok(all.find(|backend| backend.name == name))
    }

    /// Checks that attributes are those that a volume has, unless there are none.
    fn is_context(
        &self,
        id: &str,
        given: &HashMap<String, String>,
    ) -> std::result::Result<(), Status> {
        let not_found = || Status::not_found("there is no such volume");
        let id = VolumeId::parse(id).ok_or_else(not_found)?;
        let context = self
            .backend(&id.backend)?
            .ok_or_else(not_found)?
            .context(&id);
        let is_same = |(key, value)| given.get(key) == Some(value);
        match given.is_empty() || (given.len() == context.len() && context.iter().all(is_same)) {
            true => Ok(()),
            false => Err(Status::failed_precondition(
                "the attributes are not those of the volume",
            )),
        }
    }

    /// Does a task with a volume in a worker process.
    async fn run(
        &self,
        metadata: &MetadataMap,
        id: &VolumeId,
        backend: Backend,
        task: Task,
    ) -> std::result::Result<Answer, Status> {
        let secrets = backend.read_secrets().map_err(|e| unavailable(&e))?;
        let Some(_in_use) = self.used.begin(&backend.name) else {
            return Err(Status::unavailable("this process ends"));
        };
        let work = Work {
            backend,
            secrets,
            task,
        };
        let call = (id.to_string(), Call::Provision(work));
        self.service.work(metadata, call).await
    }

    /// Does a task with a volume that must exist.
    async fn run_existing(
        &self,
        metadata: &MetadataMap,
        id: &str,
        task: Task,
    ) -> std::result::Result<Answer, Status> {
        let not_found = || Status::not_found("there is no such volume");
        let id = VolumeId::parse(id).ok_or_else(not_found)?;
        let backend = self.backend(&id.backend)?.ok_or_else(not_found)?;
        self.run(metadata, &id, backend, task).await
    }
}

#[tonic::async_trait]
impl Identity for ControllerService {
    async fn get_plugin_info(
        &self,
        request: Request<csi::GetPluginInfoRequest>,
    ) -> Reply<csi::GetPluginInfoResponse> {
        self.service.get_plugin_info(request).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Reply<csi::GetPluginCapabilitiesResponse> {
        let controller = plugin_capability::Type::Service(Extra {
            r#type: service::Type::ControllerService.into(),
        });
        let online = plugin_capability::Type::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        });
        let capability = |r#type| csi::PluginCapability {
            r#type: Some(r#type),
        };
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities: [controller, online].map(capability).into(),
        }))
    }

    async fn probe(&self, request: Request<csi::ProbeRequest>) -> Reply<csi::ProbeResponse> {
        backends::read(&self.file).map_err(|e| Status::failed_precondition(e.to_string()))?;
        match provision::missing_capability() {
            Ok(None) => self.service.probe(request).await,
            Ok(Some((name, why))) => Err(Status::failed_precondition(format!(
                "capability CAP_{name} is missing: it is needed {why}"
            ))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Reply<csi::CreateVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let bytes = validate::create(&request)?;
        let parameters: BTreeMap<_, _> = request.parameters.into_iter().collect();
        let class = Class::new(&parameters, &request.name).map_err(|e| invalid(&e))?;
        let backend = self.backend(&class.backend)?.ok_or_else(|| {
            Status::invalid_argument(format!(
                "the controller has no backend {}",
                class.backend.escape_default()
            ))
        })?;
        validate::types(&request.volume_capabilities, &backend.fs_type)?;
        let directory = class.directory.clone();
        let id = VolumeId::new(&backend.name, directory).map_err(|e| invalid(&e))?;
        let context = backend.context(&id);
        let task = Task::Create(Note::new(&request.name, bytes, &class));
        let answer = self.run(&metadata, &id, backend, task).await?;
        Ok(Response::new(csi::CreateVolumeResponse {
            volume: Some(csi::Volume {
                capacity_bytes: size(&answer),
                volume_id: id.to_string(),
                volume_context: context.into_iter().collect::<HashMap<_, _>>(),
            }),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Reply<csi::DeleteVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let given = validate::volume_id(&request.volume_id)?;
        // An id that no volume can have is that of none.
        if let Some(id) = VolumeId::parse(&given) {
            let Some(backend) = self.backend(&id.backend)? else {
                return Err(Status::failed_precondition(format!(
                    "the controller has no backend {}, so the volume is left alone: add it again, or delete the PersistentVolume object",
                    id.backend
                )));
            };
            self.run(&metadata, &id, backend, Task::Delete).await?;
        }
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Reply<csi::ValidateVolumeCapabilitiesResponse> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let usable = validate::capabilities(&request.volume_capabilities);
        if let Err(status) = &usable
            && status.code() == tonic::Code::InvalidArgument
        {
            return Err(status.clone());
        }
        self.run_existing(&metadata, &id, Task::Find).await?;
        let usable = usable.and_then(|()| self.is_context(&id, &request.volume_context));
        let (confirmed, message) = match usable {
            Ok(()) => {
                // Parameters are left out: nothing says that the volume was made with them.
                let confirmed = csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: HashMap::new(),
                };
                (Some(confirmed), String::new())
            }
            Err(status) => (None, status.message().to_owned()),
        };
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse {
            confirmed,
            message,
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Reply<csi::ControllerGetCapabilitiesResponse> {
        let capability = |rpc: Rpc| csi::ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(
                controller_service_capability::Rpc { r#type: rpc.into() },
            )),
        };
        // The sidecars ask once, and a backend with a quota may come later.
        let all = [
            Rpc::CreateDeleteVolume,
            Rpc::SingleNodeMultiWriter,
            Rpc::ExpandVolume,
        ];
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse {
            capabilities: all.into_iter().map(capability).collect(),
        }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Reply<csi::ControllerExpandVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let range = request
            .capacity_range
            .ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let bytes = validate::size(Some(range))?;
        let answer = self
            .run_existing(&metadata, &id, Task::Expand(bytes))
            .await?;
        if range.limit_bytes > 0 && size(&answer) > range.limit_bytes {
            return Err(Status::out_of_range(
                "the volume is larger than limit_bytes",
            ));
        }
        Ok(Response::new(csi::ControllerExpandVolumeResponse {
            capacity_bytes: size(&answer),
            node_expansion_required: false,
        }))
    }
}

fn size(answer: &Answer) -> i64 {
    answer.bytes.try_into().unwrap_or(i64::MAX)
}
