//! Description of a sandbox, which the launcher passes to the processes that build it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Home directory of the helper, an empty one.
pub const HOME: &str = "/root";

/// Description of a sandbox, which the launcher passes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Placeholder, the target of the helper.
    pub placeholder: PathBuf,
    /// Directory with copies of files that options name. It may be missing.
    pub files: PathBuf,
    /// Log file that the helper writes.
    pub log: Option<PathBuf>,
    /// Whether the helper drops capabilities itself, and fails without them.
    pub drops_capabilities: bool,
    /// Number of the socket for the listener of the seccomp filter.
    pub socket: i32,
}
