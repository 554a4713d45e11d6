//! kubelet's FlexVolume driver and mounter, and the manifests.

mod daemonset;
pub mod flexvolume;
mod flexvolume_allowlist;
mod flexvolume_replies;
mod hostile_servers;
pub mod kubelet;
pub mod manifests;
mod mounter;
mod pod_churn;
