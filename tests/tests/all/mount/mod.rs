//! `spc mount`: targets, options, refusals, and many commands at once.

mod apparmor;
mod concurrency;
mod contract;
mod hostile_users;
mod load;
pub mod nfs3_services;
mod privilege;
mod refused_hosts;
mod refused_requests;
mod routes;
mod scale;
mod secrets;
mod selinux;
mod symlink_races;
mod targets;
