//! Messages and services of gRPC, generated from `proto/`. A test of the workspace compares them.
#![allow(missing_docs, clippy::all, reason = "generated code")]

/// Container Storage Interface.
pub mod csi {
    include!("../../../proto/generated/csi.v1.rs");
}

/// Registration of plug-ins with kubelet.
pub mod registration {
    include!("../../../proto/generated/pluginregistration.rs");
}
