//! Several servers, some of which fail.

mod failover;
mod failover_vm;
mod faulty_servers;
pub mod lab_servers;
mod naming;
