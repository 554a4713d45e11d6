//! Registration of a driver with kubelet, which calls each socket in its `plugins_registry`.

use tonic::{Request, Response, Status};

use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::proto::registration::registration_server::Registration;
use crate::frontends::csi::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// Version of CSI that kubelet asks for.
const VERSION: &str = "1.0.0";

/// Registration of one driver.
pub struct Registrar {
    /// Driver to register.
    pub driver: Driver,
    /// Path of the driver's socket on the host.
    pub endpoint: String,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.driver.name().into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let driver = self.driver.name();
        if status.plugin_registered {
            tracing::info!(driver, "registered with kubelet");
        } else {
            let error = status.error.escape_default();
            tracing::error!(driver, "kubelet rejected the driver: {error}");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
