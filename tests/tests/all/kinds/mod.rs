//! Each kind of file system, from a real server to a file on the host.

mod ceph;
pub mod fuse;
pub mod gluster;
mod gluster_over_iscsi;
mod iscsi;
mod kernel_modules;
mod local;
pub mod nfs;
mod rbd;
mod smb;
