//! Frontends that kubelet calls: the mounter program and the FlexVolume driver.

pub mod flexvolume;
pub mod mounter;
