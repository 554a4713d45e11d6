//! The pipeline: Request, Plan, run, Proof, Record. It does not know which door a request came through.

mod attempt;
pub mod containers;
pub mod deadline;
pub mod device;
pub mod direct;
pub mod files;
pub mod handover;
pub mod holders;
pub mod ladder;
pub mod mounter;
pub mod plan;
pub mod proof;
pub mod queue;
pub mod recover;
pub mod repair;
pub mod replace;
pub mod request;
pub mod run;
pub mod servers;
pub mod services;
pub mod tend;
pub mod unmounter;

pub use plan::Plan;
pub use proof::Proof;
pub use request::Request;
