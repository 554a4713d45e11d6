//! The pipeline: Request, Plan, run, Proof, Record. It does not know which door a request came through.

mod attempt;
pub mod containers;
pub mod deadline;
pub mod device;
pub mod direct;
pub mod extent;
pub mod files;
pub mod handover;
pub mod holders;
pub mod ladder;
pub mod ledger;
pub mod mounter;
pub mod options;
pub mod plan;
pub mod presence;
pub mod proof;
pub mod queue;
pub mod recover;
pub mod repair;
pub mod replace;
pub mod request;
pub mod run;
pub mod secrets;
pub mod servers;
pub mod services;
pub mod unmounter;
pub mod way;

pub use ledger::{Ledger, Record};
pub use options::Options;
pub use plan::Plan;
pub use proof::Proof;
pub use request::Request;
pub use secrets::Secrets;
