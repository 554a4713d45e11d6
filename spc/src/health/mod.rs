//! Looks at mounts and at the container, and the process that watches both.

mod copies;
pub mod doctor;
pub mod kinds;
mod known;
pub mod metrics;
mod pace;
pub mod repairs;
pub mod report;
pub mod serve;
pub mod web;
