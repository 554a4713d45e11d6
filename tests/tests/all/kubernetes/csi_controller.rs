//! The CSI controller: volumes on request, as directories of real servers. A gRPC client plays
//! csi-provisioner.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::objects;
use lab::render::kustomize;
use lab::{Base, Cluster, Engine, Lab, Propagation};
use serde_json::json;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::kubernetes::csi::proto::controller_client::ControllerClient;
use crate::kubernetes::csi::proto::identity_client::IdentityClient;
use crate::kubernetes::csi::{
    Client, CsiVolume, Mode, SHARE, connect, is_clean, outside, proto, refused, target,
};
use crate::kubernetes::daemonset::options;
use crate::kubernetes::manifests::directory;
use crate::support::{MINIMAL, Spc, until, with_gluster};

/// csi-provisioner's limit of a call in the manifest.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Capabilities of the controller beside those of the recommended run line.
const CAPABILITIES: [&str; 3] = [
    "--cap-add=CHOWN",
    "--cap-add=DAC_OVERRIDE",
    "--cap-add=FOWNER",
];

/// Directory of the host that the container has instead of a ConfigMap and a Secret.
pub const SETTINGS: &str = "/srv/controller";

pub type Reply<T> = std::result::Result<T, Status>;

/// Starts the container with the node service and the controller, on a host of its own.
pub fn serve<'lab>(lab: &'lab Lab, backends: &serde_json::Value) -> Result<Spc<'lab>> {
    let spc = Spc::loaded(lab, Propagation::Shared, Engine::Docker, Base::Trixie)?;
    spc.host.run(&["mkdir", "-p", SETTINGS])?.ok()?;
    set_backends(&spc, backends)?;
    start(&spc)?;
    Ok(spc)
}

pub fn set_backends(spc: &Spc<'_>, backends: &serde_json::Value) -> Result<()> {
    let text = backends.to_string();
    spc.host
        .write(format!("{SETTINGS}/backends.json"), text.as_bytes())
}

/// Starts the container.
pub fn start(spc: &Spc<'_>) -> Result<()> {
    let volume = format!("{SETTINGS}:/etc/controller:ro");
    let run = ["docker", "run", "-d", "--name", "spc", "-v", &volume];
    let serve = [
        Base::Trixie.image(),
        "spc",
        "serve",
        "--csi",
        "--node-id=node-1",
        "--csi-controller=/csi.sock",
        "--backends=/etc/controller/backends.json",
    ];
    let run = [&run[..], &MINIMAL, &CAPABILITIES, &serve].concat();
    spc.host.run(&run)?.ok()?;
    until("the controller is there", || {
        let log = spc.log()?;
        Ok(log.contains("serving CSI") && log.contains("serving the CSI controller"))
    })
}

/// Client of the controller.
pub struct Controller {
    runtime: Runtime,
    channel: Channel,
}

impl Controller {
    pub fn new(spc: &Spc<'_>) -> Result<Self> {
        let socket = format!("/proc/{}/root/csi.sock", spc.first()?);
        Self::at(PathBuf::from(socket))
    }

    /// Connects to a socket.
    fn at(socket: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = connect(&runtime, socket)?;
        Ok(Self { runtime, channel })
    }

    fn call<Q, A, F>(
        &self,
        limit: Duration,
        message: Q,
        call: impl FnOnce(ControllerClient<Channel>, Request<Q>) -> F,
    ) -> Reply<A>
    where
        F: Future<Output = Reply<Response<A>>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        let controller = ControllerClient::new(self.channel.clone());
        let answer = self.runtime.block_on(call(controller, request))?;
        Ok(answer.into_inner())
    }

    /// Makes a volume.
    pub fn create(&self, request: proto::CreateVolumeRequest) -> Reply<proto::Volume> {
        self.create_within(LIMIT, request)
    }

    pub fn create_within(
        &self,
        limit: Duration,
        request: proto::CreateVolumeRequest,
    ) -> Reply<proto::Volume> {
        let call = |mut one: ControllerClient<_>, r| async move { one.create_volume(r).await };
        let answer = self.call(limit, request, call)?;
        answer.volume.ok_or_else(|| Status::internal("no volume"))
    }

    /// Removes a volume.
    pub fn delete(&self, id: &str) -> Reply<()> {
        self.delete_within(LIMIT, id)
    }

    pub fn delete_within(&self, limit: Duration, id: &str) -> Reply<()> {
        let request = proto::DeleteVolumeRequest {
            volume_id: id.to_owned(),
        };
        let call = |mut one: ControllerClient<_>, r| async move { one.delete_volume(r).await };
        self.call(limit, request, call).map(drop)
    }

    /// Lets a volume grow.
    pub fn expand(&self, id: &str, required: i64, limit: i64) -> Reply<i64> {
        let request = proto::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(proto::CapacityRange {
                required_bytes: required,
                limit_bytes: limit,
            }),
        };
        let call =
            |mut one: ControllerClient<_>, r| async move { one.controller_expand_volume(r).await };
        let answer = self.call(LIMIT, request, call)?;
        Ok(answer.capacity_bytes)
    }

    pub fn validate(
        &self,
        request: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Reply<proto::ValidateVolumeCapabilitiesResponse> {
        let call = |mut one: ControllerClient<_>, r| async move {
            one.validate_volume_capabilities(r).await
        };
        self.call(LIMIT, request, call)
    }

    /// Numbers of the controller service's capabilities.
    pub fn capabilities(&self) -> Result<Vec<i32>> {
        let request = proto::ControllerGetCapabilitiesRequest {};
        let call = |mut one: ControllerClient<_>, r| async move {
            one.controller_get_capabilities(r).await
        };
        let answer = self.call(LIMIT, request, call)?;
        let numbers = answer.capabilities.into_iter().map(|capability| {
            let proto::controller_service_capability::Type::Rpc(rpc) = capability.r#type?;
            Some(rpc.r#type)
        });
        numbers.collect::<Option<_>>().context("an empty one")
    }

    /// Number of the capabilities of the plug-in.
    fn plugin_capabilities(&self) -> Result<Vec<proto::plugin_capability::Type>> {
        let mut identity = IdentityClient::new(self.channel.clone());
        let answer = self.runtime.block_on(async {
            let info = identity
                .get_plugin_info(proto::GetPluginInfoRequest {})
                .await?;
            let probe = identity.probe(proto::ProbeRequest {}).await?;
            let capabilities = identity
                .get_plugin_capabilities(proto::GetPluginCapabilitiesRequest {})
                .await?;
            Ok::<_, Status>((info, probe, capabilities))
        });
        let (info, probe, capabilities) = answer?;
        ensure!(info.into_inner().name == SHARE);
        ensure!(probe.into_inner().ready == Some(true));
        let types = capabilities.into_inner().capabilities.into_iter();
        let types = types.map(|capability| capability.r#type);
        types.collect::<Option<_>>().context("an empty one")
    }
}

/// Way to use a directory.
pub fn capability(mode: Mode) -> proto::VolumeCapability {
    let mount = proto::volume_capability::MountVolume::default();
    proto::VolumeCapability {
        access_mode: Some(proto::volume_capability::AccessMode { mode: mode.into() }),
        access_type: Some(proto::volume_capability::AccessType::Mount(mount)),
    }
}

/// Request for the claim `NAMESPACE/NAME`, as csi-provisioner makes it with
/// `--extra-create-metadata`.
pub fn request(
    name: &str,
    claim: &str,
    class: &[(&str, &str)],
    bytes: i64,
) -> proto::CreateVolumeRequest {
    let (namespace, claim) = claim.split_once('/').unwrap_or(("default", claim));
    let metadata = [
        ("csi.storage.k8s.io/pvc/namespace", namespace),
        ("csi.storage.k8s.io/pvc/name", claim),
        ("csi.storage.k8s.io/pv/name", name),
    ];
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    proto::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(proto::CapacityRange {
            required_bytes: bytes,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter)],
        parameters: class.iter().chain(&metadata).map(own).collect(),
        ..proto::CreateVolumeRequest::default()
    }
}

/// Volume of a PersistentVolume that csi-provisioner has made.
pub fn persistent(volume: &proto::Volume) -> CsiVolume {
    CsiVolume {
        id: volume.volume_id.clone(),
        attributes: volume.volume_context.clone(),
        ..CsiVolume::default()
    }
}

/// Mounts a volume for a pod, as the nodes do with the PersistentVolume that csi-provisioner makes.
pub fn publish(spc: &Spc<'_>, volume: &proto::Volume, pod: &str) -> Result<()> {
    let node = Client::register(spc, SHARE)?;
    let volume = persistent(volume);
    node.stage(spc, &volume)??;
    Ok(node.publish(spc, &volume, pod)??)
}

pub fn unpublish(spc: &Spc<'_>, volume: &proto::Volume, pod: &str) -> Result<()> {
    let node = Client::register(spc, SHARE)?;
    let volume = persistent(volume);
    node.unpublish(&volume, pod)?;
    Ok(node.unstage(&volume)?)
}

/// Container with a backend on the cluster, in a directory of the test's own.
pub struct Provisioned<'a> {
    pub spc: Spc<'a>,
    pub controller: Controller,
    pub cluster: &'a Cluster<'a>,
    directory: String,
}

impl<'a> Provisioned<'a> {
    pub fn new(lab: &'a Lab, cluster: &'a Cluster<'a>, name: &str) -> Result<Self> {
        let spc = serve(lab, &json!([]))?;
        let controller = Controller::new(&spc)?;
        Self::with(spc, controller, cluster, name)
    }

    /// Gives a running controller the backend.
    pub fn with(
        spc: Spc<'a>,
        controller: Controller,
        cluster: &'a Cluster<'a>,
        name: &str,
    ) -> Result<Self> {
        let node = |node: &lab::Node<'_>| node.host().address().to_string();
        let servers: Vec<String> = cluster.nodes().iter().map(node).collect();
        let whole = format!("{}:/vol", servers.join(","));
        let directory = format!("requested-{name}");
        spc.host.run(&["mkdir", "-p", WHOLE])?.ok()?;
        spc.mount(&["-t", "glusterfs", &whole, WHOLE])?;
        spc.host
            .run(&["mkdir", &format!("{WHOLE}/{directory}")])?
            .ok()?;
        spc.umount(WHOLE)?;
        let source = format!("{whole}/{directory}");
        let backend = json!({"name": "data", "type": "glusterfs", "source": source});
        set_backends(&spc, &json!([backend]))?;
        Ok(Self {
            spc,
            controller,
            cluster,
            directory,
        })
    }

    /// Runs a script in the backend's directory on the first server.
    pub fn on_server(&self, script: &str) -> Result<String> {
        let node = &self.cluster.nodes()[0];
        let directory = node.brick("vol").join(&self.directory);
        let script = format!("cd {} && {script}", directory.display());
        Ok(node.host().sh(&script)?.ok()?.text())
    }

    /// Source of the backend, from one server.
    pub fn source(&self) -> String {
        let server = self.cluster.nodes()[0].host().address();
        format!("{server}:/vol/{}", self.directory)
    }
}

/// Directory of the host for the whole volume of the cluster.
const WHOLE: &str = "/mnt/whole";

#[test]
fn a_claim_becomes_a_directory_that_pods_use_and_deletion_removes() {
    with_gluster(|lab, cluster| {
        let test = Provisioned::new(lab, cluster, "claim")?;
        let (spc, controller) = (&test.spc, &test.controller);
        let before = spc.host.mountinfo()?.len();
        ensure!(controller.capabilities()? == [1, 13, 9]);
        ensure!(controller.plugin_capabilities()?.len() == 2);
        let class = [
            ("backend", "data"),
            ("directory", "${pvc.namespace}/${pvc.name}"),
        ];
        let wanted = request("pvc-1", "team/web", &class, 1 << 30);
        let volume = controller.create(wanted.clone())?;
        ensure!(volume.volume_id == "data/team/web" && volume.capacity_bytes == 0);
        ensure!(controller.create(wanted.clone())? == volume);
        // The backend is mounted once, and its volumes not at all.
        ensure!(spc.host.mountinfo()?.len() == before + 1);
        for other in [
            request("pvc-1", "team/web", &class, 2 << 30),
            request("pvc-2", "team/web", &class, 1 << 30),
        ] {
            let reply = controller.create(other).map(drop);
            refused(reply, Code::AlreadyExists, "the volume team/web exists")?;
        }

        publish(spc, &volume, "1-1")?;
        spc.host
            .write(format!("{}/file", target("1-1")), b"of the pod")?;
        ensure!(test.on_server("cat team/web/file")? == "of the pod");
        // Pods are not root.
        ensure!(test.on_server("stat -c %a team/web")? == "777");
        let see_all = spc.host.sh(&format!("ls -A {}", target("1-1")))?.ok()?;
        ensure!(see_all.text() == "file", "{see_all}");
        unpublish(spc, &volume, "1-1")?;

        let check_with = |id: &str, mode, volume_context: &HashMap<String, String>| {
            controller.validate(proto::ValidateVolumeCapabilitiesRequest {
                volume_id: id.to_owned(),
                volume_context: volume_context.clone(),
                volume_capabilities: vec![capability(mode)],
                parameters: HashMap::new(),
            })
        };
        let check = |id: &str, mode| check_with(id, mode, &volume.volume_context);
        let confirmed = check(&volume.volume_id, Mode::SingleNodeSingleWriter)?;
        ensure!(confirmed.confirmed.is_some(), "{confirmed:?}");
        let mut other = volume.volume_context.clone();
        other.insert("source".into(), "192.0.2.1:/other".into());
        let other = check_with(&volume.volume_id, Mode::SingleNodeWriter, &other)?;
        ensure!(other.confirmed.is_none(), "{other:?}");
        let unknown = check("data/team/none", Mode::SingleNodeWriter).map(drop);
        refused(unknown, Code::NotFound, "")?;
        let grown = controller.expand(&volume.volume_id, 2 << 30, 0).map(drop);
        refused(grown, Code::FailedPrecondition, "not limited")?;

        for _ in 0..3 {
            controller.delete(&volume.volume_id)?;
        }
        ensure!(test.on_server("ls -A team")?.is_empty());
        ensure!(test.on_server("find .spc -type f")?.is_empty());
        let gone = check(&volume.volume_id, Mode::SingleNodeWriter).map(drop);
        refused(gone, Code::NotFound, "")?;

        let class = [
            ("backend", "data"),
            ("owner", "1000:2000"),
            ("mode", "2770"),
        ];
        let owned = controller.create(request("owned", "x", &class, 0))?;
        ensure!(test.on_server("stat -c %a:%u:%g owned")? == "2770:1000:2000");
        controller.delete(&owned.volume_id)?;

        for (treatment, kept) in [("archive", ".spc/archive/kept-1"), ("retain", "kept-1")] {
            let class = [("backend", "data"), ("onDelete", treatment)];
            let volume = controller.create(request("kept-1", "x", &class, 0))?;
            ensure!(volume.volume_id == "data/kept-1");
            publish(spc, &volume, "1-1")?;
            spc.host
                .write(format!("{}/file", target("1-1")), treatment.as_bytes())?;
            unpublish(spc, &volume, "1-1")?;
            controller.delete(&volume.volume_id)?;
            controller.delete(&volume.volume_id)?;
            ensure!(test.on_server(&format!("cat {kept}/file"))? == treatment);
        }
        // What was kept is not for another claim.
        let again = controller.create(request("kept-1", "x", &[("backend", "data")], 0));
        refused(again.map(drop), Code::AlreadyExists, "is not a volume")?;

        // Nothing is mounted when nothing is to do.
        until("the backend is idle", || {
            Ok(!spc.on("/run/spc/backends/data")?.is_empty())
        })?;
        for _ in 0..2 {
            let _ = until("the backend is unmounted", || {
                Ok(spc.on("/run/spc/backends/data")?.is_empty())
            });
        }
        is_clean(spc)?;
        ensure!(spc.host.mountinfo()?.len() == before);
        // A controller that ends unmounts its backends.
        controller.delete("data/none")?;
        ensure!(spc.on("/run/spc/backends/data")?.len() == 1);
        spc.host.run(&["docker", "stop", "spc"])?.ok()?;
        ensure!(spc.on("/run/spc/backends/data")?.is_empty());
        Ok(())
    });
}

#[test]
fn the_manifest_of_the_controller_has_what_it_needs() {
    with_gluster(|lab, cluster| {
        let base = kustomize(&directory().join("controller"))?;
        let of_kind = |kind: &str| base.iter().find(|object| object["kind"] == kind);
        let settings = of_kind("ConfigMap").context("no ConfigMap")?;
        let example = settings["data"]["backends.json"].as_str();
        let pod = of_kind("Deployment").and_then(|one| one.pointer("/spec/template/spec"));
        let pod = pod.context("no Deployment")?;
        let container = &pod["containers"][0];

        let spc = Spc::loaded(lab, Propagation::Shared, Engine::Docker, Base::Trixie)?;
        spc.host.run(&["mkdir", "-p", SETTINGS, "/srv/csi"])?.ok()?;
        set_backends(
            &spc,
            &serde_json::from_str(example.context("no backends")?)?,
        )?;
        let mut words: Vec<String> = ["docker", "run", "-d", "--name", "spc"]
            .map(str::to_owned)
            .into();
        words.extend(options(pod, container)?);
        for (outside, inside) in [("/srv/csi", "/csi"), (SETTINGS, "/etc/controller/backends")] {
            let mounts = container["volumeMounts"].as_array().context("no mounts")?;
            ensure!(mounts.iter().any(|mount| mount["mountPath"] == inside));
            words.push(format!("--volume={outside}:{inside}"));
        }
        words.push(Base::Trixie.image().to_owned());
        let command = container["command"].as_array().context("no command")?;
        words.extend(
            command
                .iter()
                .filter_map(|word| word.as_str().map(str::to_owned)),
        );
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        spc.host.run(&words)?.ok()?;
        until("the controller is there", || {
            Ok(spc.log()?.contains("serving the CSI controller"))
        })?;
        let controller = Controller::at(outside(&spc, "/srv/csi/csi.sock"))?;
        let ready = controller.plugin_capabilities()?;
        ensure!(ready.len() == 2);
        let test = Provisioned::with(spc, controller, cluster, "manifest")?;
        let class = [
            ("backend", "data"),
            ("owner", "1000:1000"),
            ("mode", "0700"),
        ];
        let volume = test.controller.create(request("pvc-1", "web", &class, 0))?;
        // Files of a user, as pods leave them.
        let fill = "mkdir -p d && echo x >d/file && chown -R 1000:1000 d && chmod 500 d";
        test.spc
            .mount(&["-t", "glusterfs", &test.source(), WHOLE])?;
        test.spc
            .host
            .sh(&format!("cd {WHOLE}/pvc-1 && {fill}"))?
            .ok()?;
        test.spc.umount(WHOLE)?;
        test.controller.delete(&volume.volume_id)?;
        ensure!(test.on_server("ls")?.is_empty());

        // The StorageClass of the example.
        let example = objects(&directory().join("examples/claim.yaml"))?;
        let class = example
            .iter()
            .find(|object| object["kind"] == "StorageClass");
        let class = class.context("no StorageClass")?;
        ensure!(class["provisioner"] == SHARE, "{class}");
        let parameters = class["parameters"].as_object().context("no parameters")?;
        let parameters: Vec<_> = parameters
            .iter()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect();
        let claimed = request("pvc-2", "web", &parameters, 0);
        let volume = test.controller.create(claimed)?;
        ensure!(volume.volume_id == "data/default/web", "{volume:?}");

        // The sidecars use the same socket, and nothing else.
        for sidecar in &pod["containers"].as_array().context("no containers")?[1..] {
            let arguments = sidecar["args"].to_string();
            ensure!(
                arguments.contains("--csi-address=/csi/csi.sock"),
                "{sidecar}"
            );
            let mounts = json!([{"name": "socket", "mountPath": "/csi"}]);
            ensure!(sidecar["volumeMounts"] == mounts, "{sidecar}");
        }
        Ok(())
    });
}
