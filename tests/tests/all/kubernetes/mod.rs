//! kubelet's CSI and FlexVolume drivers and mounter, and the manifests.

mod cluster;
mod cluster_failures;
mod cluster_kinds;
mod cluster_load;
pub mod csi;
pub mod csi_controller;
mod csi_controller_hostile;
mod csi_controller_kinds;
pub mod csi_failures;
mod csi_kinds;
mod csi_node;
mod csi_rules;
pub mod daemonset;
pub mod flexvolume;
mod flexvolume_allowlist;
mod flexvolume_replies;
mod hostile_clients;
mod hostile_pods;
mod hostile_servers;
pub mod kubelet;
pub mod manifests;
mod mounter;
mod pod_churn;
