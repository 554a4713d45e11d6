//! Every test that needs root, in one program, so that all of them share a lab.

mod crash;
mod docs;
mod install;
mod kinds;
mod kubernetes;
mod lab;
mod mount;
mod observe;
mod repair;
mod servers;
mod shim;
mod support;
mod unmount;
