//! The shim in a real container.

mod defects_of_2015;
mod faults_below;
mod hostile_callers;
mod nsenter;
pub mod redirected_calls;
mod transparency;
