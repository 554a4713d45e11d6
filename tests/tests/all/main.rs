//! Every test that needs root, in one program, so that all of them share a lab.

mod at_once;
mod callers;
mod crash;
mod crossing;
mod demo;
mod docker;
mod lab;
mod nsenter;
mod original;
mod privilege;
mod support;
mod targets;
