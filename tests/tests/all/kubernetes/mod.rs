//! kubelet's FlexVolume driver and mounter, and the manifests.

mod daemonset;
pub mod flexvolume;
mod flexvolume_allowlist;
mod flexvolume_replies;
pub mod kubelet;
pub mod manifests;
mod mounter;
mod pod_churn;
