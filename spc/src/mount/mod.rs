//! Mount pipeline: Request, Plan, run, Proof, Record. It does not depend on the frontend.

mod attempt;
pub mod deadline;
pub mod detached;
pub mod direct;
pub mod failover;
pub mod helper_run;
mod helper_view;
pub mod pipeline;
pub mod plan;
pub mod proof;
pub mod remount;
pub mod request;
pub mod server_file;

pub use plan::Plan;
pub use proof::Proof;
pub use request::Request;
