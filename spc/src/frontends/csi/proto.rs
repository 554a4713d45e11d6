//! gRPC messages and services, generated from `proto/`. A test of `spc-tests` fails when they are
//! outdated.
#![allow(missing_docs, clippy::all, reason = "generated code")]

/// Container Storage Interface.
pub mod csi {
    include!("../../../proto/generated/csi.v1.rs");
}

/// Registration of plug-ins with kubelet.
pub mod registration {
    include!("../../../proto/generated/pluginregistration.rs");
}
