//! Controller service: volumes on request, as directories of backends.
//!
//! `spc serve --csi-controller` serves csi-provisioner and csi-resizer on a socket in a directory
//! of the pod. Each call runs in a worker process, like the calls of the node service.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
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
    Service as PluginService, VolumeExpansion, service, volume_expansion,
};
use crate::frontends::csi::proto::csi::{self, controller_service_capability, plugin_capability};
use crate::frontends::csi::server::{GrpcResult, Service, run_worker};
use crate::frontends::csi::{connection, runtime, sockets, validate};
use crate::provision::backends::{self, Backend};
use crate::provision::class::Class;
use crate::provision::notes::Note;
use crate::provision::{self, Task, VolumeId, Work};

/// Interval at which unused backends are unmounted.
const RELEASE_INTERVAL: Duration = Duration::from_secs(5);

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
            let answer = run_worker(&release_job(&backend), RELEASE_LIMIT);
            if answer.code != 0 {
                tracing::warn!(backend, "the backend stays mounted: {}", answer.message);
            }
        }
    }
}

/// Returns the job that unmounts a backend.
fn release_job(backend: &str) -> Job {
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
    /// Starts the controller if the arguments ask for it. It runs until the process ends.
    ///
    /// # Errors
    /// The backends are invalid, the socket cannot be bound, or the thread cannot be started.
    pub fn start(self) -> Result<Option<Running>> {
        let (Some(socket), Some(file)) = (self.csi_controller, self.backends) else {
            return Ok(None);
        };
        // An earlier process may have left backends mounted. Unused ones are unmounted soon.
        let used = Arc::new(BackendUse::default());
        for backend in backends::read(&file)? {
            used.touch(&backend.name);
        }
        let listener = sockets::listen(&socket)
            .map_err(|e| Error::system(format!("cannot listen on {}", show(&socket))).because(e))?;
        let service = ControllerService {
            service: Service::new(Driver::Share, ""),
            file: file.into(),
            used: Arc::clone(&used),
        };
        runtime::spawn("csi-controller", "the CSI controller", move || {
            tracing::info!("serving the CSI controller");
            serve(service, listener)
        })?;
        Ok(Some(Running { socket, used }))
    }
}

/// Serves the controller on the calling thread. Returns only on failure.
fn serve(service: ControllerService, listener: UnixListener) -> std::io::Result<Infallible> {
    runtime::block_on(async {
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

/// Unmounts unused backends in an endless loop.
async fn release_unused(service: ControllerService) {
    loop {
        tokio::time::sleep(RELEASE_INTERVAL).await;
        for backend in service.used.idle(Instant::now()) {
            let job = release_job(&backend);
            let released = service
                .service
                .work(&MetadataMap::new(), job.volume_id, job.call)
                .await;
            match released {
                Ok(_) => service.used.remove_if_idle(&backend),
                // A call whose client has given up may still use the backend.
                Err(status) => {
                    service.used.touch(&backend);
                    tracing::warn!(backend, "the backend stays mounted: {}", status.message());
                }
            }
        }
    }
}

/// Identity and controller service.
#[derive(Clone)]
struct ControllerService {
    /// Runs workers, and answers calls that are the same for every driver.
    service: Service,
    /// File of backends.
    file: Arc<Path>,
    used: Arc<BackendUse>,
}

/// Returns the status for an error of this process. Logs it, since the client only tries again.
fn unavailable(error: &Error) -> Status {
    tracing::error!("{}", one_line(error));
    Status::unavailable(error.to_string())
}

/// Returns the status for an invalid parameter.
fn invalid(error: &Error) -> Status {
    Status::invalid_argument(error.to_string())
}

impl ControllerService {
    /// Reads the backends anew, because the file may change while this process runs.
    fn backends(&self) -> std::result::Result<Vec<Backend>, Status> {
        backends::read(&self.file).map_err(|error| unavailable(&error))
    }

    /// Returns the backend with this name, if there is one.
    fn backend(&self, name: &str) -> std::result::Result<Option<Backend>, Status> {
        let mut all = self.backends()?.into_iter();
        Ok(all.find(|backend| backend.name == name))
    }

    /// Checks that attributes, if there are any, are the volume context of a volume.
    fn check_context(
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
        if given.is_empty() || (given.len() == context.len() && context.iter().all(is_same)) {
            Ok(())
        } else {
            Err(Status::failed_precondition(
                "the attributes are not those of the volume",
            ))
        }
    }

    /// Runs a task on a volume in a worker process.
    async fn run(
        &self,
        metadata: &MetadataMap,
        id: &VolumeId,
        backend: Backend,
        task: Task,
    ) -> std::result::Result<Answer, Status> {
        let secrets = backend.read_secrets().map_err(|e| unavailable(&e))?;
        let Some(_in_use) = self.used.begin(&backend.name) else {
            return Err(Status::unavailable("this process is shutting down"));
        };
        let work = Work {
            backend,
            secrets,
            task,
        };
        self.service
            .work(metadata, id.to_string(), Call::Provision(work))
            .await
    }

    /// Runs a task on a volume that must exist.
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
    ) -> GrpcResult<csi::GetPluginInfoResponse> {
        self.service.get_plugin_info(request).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> GrpcResult<csi::GetPluginCapabilitiesResponse> {
        let controller = plugin_capability::Type::Service(PluginService {
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

    async fn probe(&self, request: Request<csi::ProbeRequest>) -> GrpcResult<csi::ProbeResponse> {
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
    ) -> GrpcResult<csi::CreateVolumeResponse> {
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
        validate::check_types(&request.volume_capabilities, &backend.fs_type)?;
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
    ) -> GrpcResult<csi::DeleteVolumeResponse> {
        let (metadata, _, request) = request.into_parts();
        let given = validate::volume_id(&request.volume_id)?;
        // Nothing is to do for an id that no volume can have.
        if let Some(id) = VolumeId::parse(&given) {
            let Some(backend) = self.backend(&id.backend)? else {
                return Err(Status::failed_precondition(format!(
                    "the controller has no backend {}, so the volume is left alone: add it again, \
                     or delete the PersistentVolume object",
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
    ) -> GrpcResult<csi::ValidateVolumeCapabilitiesResponse> {
        let (metadata, _, request) = request.into_parts();
        let id = validate::volume_id(&request.volume_id)?;
        let usable = validate::check_capabilities(&request.volume_capabilities);
        if let Err(status) = &usable
            && status.code() == tonic::Code::InvalidArgument
        {
            return Err(status.clone());
        }
        self.run_existing(&metadata, &id, Task::Find).await?;
        let usable = usable.and_then(|()| self.check_context(&id, &request.volume_context));
        let (confirmed, message) = match usable {
            Ok(()) => {
                // Parameters are not confirmed, because the note does not contain them all.
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
    ) -> GrpcResult<csi::ControllerGetCapabilitiesResponse> {
        let capability = |rpc: Rpc| csi::ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(
                controller_service_capability::Rpc { r#type: rpc.into() },
            )),
        };
        // The sidecars ask once. A backend with a quota, whose volumes can grow, may come later.
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
    ) -> GrpcResult<csi::ControllerExpandVolumeResponse> {
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

/// Returns the size of a volume as CSI expresses it.
fn size(answer: &Answer) -> i64 {
    answer.bytes.try_into().unwrap_or(i64::MAX)
}
