//! Messages and services of gRPC, generated from `proto/`.
#![allow(missing_docs, clippy::all, reason = "generated code")]

/// Container Storage Interface.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Registration of plug-ins with kubelet.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
