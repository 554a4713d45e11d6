//! Looks at mounts and at the container, and the process that watches both.

pub mod backoff;
pub mod copies;
pub mod event_listener;
pub mod http;
pub mod metrics;
pub mod record_cache;
pub mod repair_scheduler;
pub mod serve;
