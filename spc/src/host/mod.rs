//! Everything that looks at or changes the host.

pub mod caller;
pub mod claim;
pub mod container;
pub mod copies;
pub mod disk;
pub mod errand;
pub mod hostname;
pub mod modules;
pub mod mountinfo;
pub mod namespace;
pub mod output;
pub mod place;
pub mod process;
pub mod ranges;
pub mod rpc;
pub mod scope;
pub mod service;
pub mod settings;
pub mod target;
pub mod turn;

pub use claim::{Claim, Mode};
pub use namespace::Host;
pub use settings::Settings;
