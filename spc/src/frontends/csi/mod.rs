//! CSI drivers: the node service of the Container Storage Interface, for kubelet, and the
//! controller service, for the sidecars of a controller.
//!
//! `spc serve --csi` serves gRPC to kubelet on one thread. Every call that needs the host runs in a
//! worker process (`work`), which uses the same pipeline as the other frontends. A volume is
//! mounted once for the node (stage), and bound for each pod (publish).

mod backend_use;
mod connection;
pub mod controller;
mod driver;
mod job;
mod proto;
mod registration;
mod runtime;
mod server;
mod sockets;
mod stats;
mod validate;
pub mod work;

use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use tonic::transport::Server;

use crate::daemon::event_listener::retry_forever;
use crate::error::{Error, Result};
use crate::frontends::csi::proto::csi::identity_server::IdentityServer;
use crate::frontends::csi::proto::csi::node_server::NodeServer;
use crate::frontends::csi::proto::registration::registration_server::RegistrationServer;
use crate::frontends::csi::registration::Registrar;
use crate::frontends::csi::server::Service;
use crate::frontends::csi::sockets::{Listeners, Sockets};

/// Arguments of `spc serve` for CSI.
#[derive(Debug, Args)]
pub struct CsiArgs {
    /// Serve the CSI drivers share.spc.csi, mapped.spc.csi and disk.spc.csi to kubelet
    #[arg(long)]
    csi: bool,
    /// kubelet's directory on the host
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet",
        requires = "csi"
    )]
    kubelet_dir: PathBuf,
    /// Name of this node in the cluster; without it, the host name
    #[arg(long, value_name = "NAME", requires = "csi")]
    node_id: Option<String>,
}

/// Running drivers. Dropping them removes their sockets from the host.
pub struct Drivers {
    /// Sockets; none until the host is reachable. Shared with the thread that binds them.
    sockets: Arc<Mutex<Option<Sockets>>>,
}

impl Drop for Drivers {
    fn drop(&mut self) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        drop(sockets.take());
    }
}

impl CsiArgs {
    /// Starts the drivers if the arguments ask for them. They run until the process ends.
    ///
    /// # Errors
    /// The thread cannot be started, or kubelet's directory is not an absolute path.
    pub fn start(self) -> Result<Option<Drivers>> {
        if !self.csi {
            return Ok(None);
        }
        if !self.kubelet_dir.is_absolute() {
            return Err(Error::usage("--kubelet-dir must be an absolute path"));
        }
        let node_id = self.node_id.unwrap_or_else(|| {
            let name = rustix::system::uname();
            name.nodename().to_string_lossy().into_owned()
        });
        let sockets = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&sockets);
        runtime::spawn("csi", "CSI", move || {
            let listeners = retry_forever("kubelet cannot use the CSI drivers", || {
                let (bound, listeners) = Sockets::bind(&self.kubelet_dir)?;
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(bound);
                Ok(listeners)
            });
            tracing::info!(node_id, "serving CSI");
            serve(listeners, &node_id)
        })?;
        Ok(Some(Drivers { sockets }))
    }
}

/// Serves all drivers on the calling thread. Returns only on failure.
fn serve(all: Vec<Listeners>, node_id: &str) -> std::io::Result<Infallible> {
    runtime::block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for listeners in all {
            let service = Service::new(listeners.driver, node_id);
            let driver = Server::builder()
                .add_service(IdentityServer::new(service.clone()))
                .add_service(NodeServer::new(service));
            let registration = Server::builder().add_service(RegistrationServer::new(Registrar {
                driver: listeners.driver,
                endpoint: listeners.endpoint,
            }));
            for (router, listener) in [
                (driver, listeners.service),
                (registration, listeners.registration),
            ] {
                servers.spawn(router.serve_with_incoming(connection::incoming(listener)?));
            }
        }
        let ended = servers.join_next().await;
        let reason = match ended {
            Some(Ok(Err(error))) => error.to_string(),
            _ => "a server has ended".into(),
        };
        Err(std::io::Error::other(reason))
    })
}

/// Runs one call in a worker process, prints its result, and returns the exit code.
pub fn worker_main() -> u8 {
    let answer = work::run();
    // If this fails, the parent process reports that the worker has not replied.
    let _ = std::io::stdout().write_all(format!("{}\n", answer.to_json()).as_bytes());
    0
}
