//! Every test that needs root, in one program, so that all of them share a lab.

mod at_once;
mod crash;
mod docker;
mod lab;
mod nsenter;
mod privilege;
mod support;
mod targets;
