//! Calls that a worker process does, and their results, as JSON on its standard input and output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::error::{Class, Error, Reason};
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::stats::Stats;
use crate::log;
use crate::provision;

/// Call for a worker. Debug is left out, since it holds secrets.
#[derive(Clone, Serialize, Deserialize)]
pub struct Job {
    /// Driver that was called.
    pub driver: Driver,
    /// Id of the volume.
    pub volume_id: String,
    /// Time for the work in milliseconds. Undoing comes on top of it.
    pub milliseconds: u64,
    /// Call with its parameters.
    pub call: Call,
}

/// Call with its parameters.
#[derive(Clone, Serialize, Deserialize)]
pub enum Call {
    /// `NodeStageVolume`.
    Stage {
        /// Directory for the mount.
        target: String,
        /// Description of the volume.
        volume: Description,
    },
    /// `NodePublishVolume` of a staged volume.
    Publish {
        /// Directory where the volume is staged.
        staged_at: String,
        /// Directory to create for the pod.
        target: String,
        /// Access mode.
        access: String,
        /// Whether the pod may only read.
        read_only: bool,
    },
    /// `NodePublishVolume` of an inline volume.
    Inline {
        /// Directory to create for the pod.
        target: String,
        /// Description of the volume.
        volume: Description,
    },
    /// `NodeUnstageVolume`.
    Unstage {
        /// Directory of the mount.
        target: String,
    },
    /// `NodeUnpublishVolume`.
    Unpublish {
        /// Directory to remove.
        target: String,
    },
    /// `NodeGetVolumeStats`.
    Stats {
        /// Directory where the volume is.
        target: String,
    },
    /// Call of the controller service, about a volume of a backend.
    Provision(provision::Work),
    /// End of the use of a backend.
    Release {
        /// Name of the backend.
        backend: String,
    },
    /// `NodeExpandVolume`.
    Expand {
        /// Directory where the volume is.
        target: String,
        /// Least size in bytes.
        bytes: u64,
    },
}

/// Description of a volume in a call.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Description {
    /// Type of the file system.
    pub fs_type: Option<String>,
    /// Attributes of the volume's author.
    pub attributes: BTreeMap<String, String>,
    /// Mount options of the PersistentVolume.
    pub mount_options: Vec<String>,
    /// Secret.
    pub secrets: BTreeMap<String, String>,
    /// Access mode.
    pub access: String,
    /// Whether the volume is read-only.
    pub read_only: bool,
    /// Group that the files shall have.
    pub group: Option<String>,
}

/// Result of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Status code of gRPC; 0 for success.
    pub code: i32,
    /// Reason of a failure.
    #[serde(default)]
    pub message: String,
    /// Look at a volume.
    #[serde(default)]
    pub stats: Stats,
    /// Size of the volume, in bytes.
    #[serde(default)]
    pub bytes: u64,
}

impl Answer {
    /// Returns the result of a call that failed with this code.
    pub fn failure(code: Code, error: Error) -> Self {
        Self {
            code: code.into(),
            message: log::with_request(error).to_string(),
            ..Self::default()
        }
    }

    /// Parses the output of a worker.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }

    /// Returns the result as JSON, on one line.
    pub fn text(&self) -> String {
        // Strings and numbers always convert to JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Returns the code for an error that left nothing behind.
///
/// To kubelet, UNAVAILABLE and ABORTED mean that the call may still be going on, and every other
/// code that nothing is there.
pub fn code_of(error: &Error) -> Code {
    match (error.class(), error.reason()) {
        (_, Reason::Occupied) => Code::AlreadyExists,
        (_, Reason::Dead) => Code::Unavailable,
        (_, Reason::Locked) => Code::Aborted,
        (Class::Usage, _) => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

/// Returns the code for a failure of the controller service. csi-provisioner forgets a volume that
/// failed with a code other than UNAVAILABLE, DEADLINE_EXCEEDED and ABORTED.
pub fn code_of_kind(kind: provision::Kind) -> Code {
    match kind {
        provision::Kind::Invalid => Code::InvalidArgument,
        provision::Kind::Exists => Code::AlreadyExists,
        provision::Kind::NotFound => Code::NotFound,
        provision::Kind::Unsupported => Code::FailedPrecondition,
        provision::Kind::Unfinished => Code::DeadlineExceeded,
        provision::Kind::Final => Code::Internal,
        provision::Kind::Unavailable => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_that_may_be_left_has_a_code_that_is_not_final() {
        for (error, code) in [
            (Error::usage("x"), Code::InvalidArgument),
            (Error::system("x"), Code::Internal),
            (Error::mount("x").reason_is(Reason::Timeout), Code::Internal),
            (
                Error::mount("x").reason_is(Reason::NoAnswer),
                Code::Internal,
            ),
            (
                Error::mount("x").reason_is(Reason::Occupied),
                Code::AlreadyExists,
            ),
            (Error::mount("x").reason_is(Reason::Dead), Code::Unavailable),
            (Error::mount("x").reason_is(Reason::Locked), Code::Aborted),
        ] {
            assert_eq!(code_of(&error), code, "{error}");
        }
    }
}
