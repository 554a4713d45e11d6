//! What spc reports: doctor, log, metrics, terminal.

pub mod doctor;
mod logs;
mod ls_watch;
mod metrics;
mod metrics_docs;
mod terminal;
