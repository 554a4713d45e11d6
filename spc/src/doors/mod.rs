//! The ways in. Each turns what it is given into a request and leads into the pipeline.

pub mod argv;
pub mod cli;
pub mod show;
