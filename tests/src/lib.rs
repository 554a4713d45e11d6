//! The lab: disposable hosts, virtual machines and real servers for tests.
//!
//! ```text
//! test process ──stdin pipe──> supervisor        ends the lab when the test process exits or is killed
//!                                └─ lab init      PID 1 of the lab: own PID, mount, network (bridge), UTS, IPC namespaces
//!                                     ├─ host-1   PID 1 of a host: own PID, mount, network, UTS, IPC, cgroup namespaces
//!                                     ├─ host-2 …
//!                                     └─ host-3   QEMU: a virtual machine with a kernel of its own, on the same bridge
//! ```
//!
//! A host writes to a tmpfs of its mount namespace. Every process of the lab is in one cgroup
//! (`spc-lab-PID-…`) and below one PID 1. So nothing survives the test process or reaches the
//! machine. Loop devices, which the lab gives back, and settings in `/proc/sys` without a namespace
//! are shared with the machine.

mod any;
mod bench;
mod boot;
mod cache;
mod ceph;
mod cgroup;
mod cluster;
mod container;
mod demo;
mod disks;
mod engine;
mod enter;
mod exec;
mod faults;
mod faulty;
pub mod fuzz;
mod ganesha;
mod gluster;
#[cfg(test)]
mod grpc;
mod guest;
mod host;
mod image;
mod knfsd;
pub mod kubernetes;
mod lio;
mod loops;
mod machine;
mod mountinfo;
pub mod mutants;
mod net;
mod outer;
mod output;
mod packages;
mod prepare;
mod programs;
pub mod render;
mod roots;
mod runtime;
mod s3;
mod samba;
mod saved;
mod step;
mod supervisor;
mod times;
mod vm;

pub mod cli;

pub use any::AnyHost;
pub use bench::{Figures, measure};
pub use ceph::{Ceph, Session, ceph};
pub use cluster::{Kubernetes, kubernetes};
pub use container::STATE as RUNC_STATE;
pub use demo::demo;
pub use engine::Engine;
pub use exec::{Process, Run};
pub use faults::{Act, Fault, errnos};
pub use faulty::{Conduct, Faulty, FaultyServer};
pub use ganesha::{Ganesha, ganesha};
pub use gluster::{Cluster, Node, gluster};
pub use host::{Host, HostOptions, Propagation};
pub use image::{Base, image};
pub use knfsd::{Knfsd, knfsd};
pub use lio::{Lio, lio};
pub use mountinfo::Mount;
pub use outer::{Lab, shared};
pub use output::{Output, Status};
pub use packages::require;
pub use programs::{Libc, library, program};
pub use roots::Root;
pub use rustix::process::Signal;
pub use s3::ObjectStore;
pub use samba::Samba;
pub use step::{Kill, Stepped, Victim};
pub use vm::{Vm, VmOptions, VmRun};
