//! The lab itself, and the fuzz targets.

mod fuzz;
mod hosts;
mod vm;
