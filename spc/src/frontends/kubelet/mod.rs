//! Frontends that kubelet runs: its mounter and the FlexVolume driver.

pub mod flexvolume;
pub mod mounter;
pub mod paths;
