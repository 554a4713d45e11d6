//! Every test that needs root, in one program, so that all of them share a lab.

mod at_once;
mod bad_host;
mod bad_input;
mod callers;
mod crash;
mod crossing;
mod demo;
mod docker;
mod doctor;
mod gluster_block;
mod iscsi;
mod kinds;
mod lab;
mod nfs;
mod nsenter;
mod original;
mod privilege;
mod races;
mod routes;
mod scene;
mod secrets;
mod support;
mod targets;
mod terminal;
mod vm;
