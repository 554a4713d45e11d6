//! `spc serve`: reconciles records with the host's mounts, repairs dead mounts, logs what commands
//! report, and serves metrics.

pub mod backoff;
pub mod copies;
pub mod event_listener;
pub mod health_check;
pub mod http;
pub mod metrics;
pub mod pod_release;
pub mod record_cache;
pub mod repair_scheduler;
pub mod serve;
