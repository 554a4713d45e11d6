//! Call for a worker process and its result: JSON on the standard input and output of the worker.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::error::{Class, Error, Reason};
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::stats::Stats;
use crate::log;
use crate::provision;

/// Call for a worker. `Debug` is not derived, because the secrets must not reach a log.
#[derive(Clone, Serialize, Deserialize)]
pub struct Job {
    /// Driver that was called.
    pub driver: Driver,
    /// Id of the volume.
    pub volume_id: String,
    /// Time limit of the work in milliseconds. A rollback may exceed it.
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
    /// Call of the controller service for a volume of a backend.
    Provision(provision::Work),
    /// Unmount of a backend that no call uses.
    Release {
        /// Name of the backend.
        backend: String,
    },
    /// `NodeExpandVolume`.
    Expand {
        /// Directory where the volume is.
        target: String,
        /// Smallest size in bytes.
        bytes: u64,
    },
}

/// Description of a volume in a call.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Description {
    /// Type of the file system.
    pub fs_type: Option<String>,
    /// Attributes that the author of the volume wrote.
    pub attributes: BTreeMap<String, String>,
    /// Mount options of the PersistentVolume.
    pub mount_options: Vec<String>,
    /// Secrets, by name.
    pub secrets: BTreeMap<String, String>,
    /// Access mode.
    pub access: String,
    /// Whether the volume is read-only.
    pub read_only: bool,
    /// Group for the files of the volume (`volume_mount_group`).
    pub group: Option<String>,
}

/// Result of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// gRPC status code; 0 for success.
    pub code: i32,
    /// Reason of a failure.
    #[serde(default)]
    pub message: String,
    /// Size, use and condition of a volume.
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
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }

    /// Returns the result as JSON, on one line.
    pub fn to_json(&self) -> String {
        // Strings and numbers always convert to JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Returns the code for an error that left nothing behind.
///
/// For kubelet, UNAVAILABLE and ABORTED mean that the call may still be in progress, every other
/// code that nothing is mounted.
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
pub fn code_of_failure(kind: provision::FailureKind) -> Code {
    match kind {
        provision::FailureKind::Invalid => Code::InvalidArgument,
        provision::FailureKind::Exists => Code::AlreadyExists,
        provision::FailureKind::NotFound => Code::NotFound,
        provision::FailureKind::Unsupported => Code::FailedPrecondition,
        provision::FailureKind::Unfinished => Code::DeadlineExceeded,
        provision::FailureKind::Final => Code::Internal,
        provision::FailureKind::Unavailable => Code::Unavailable,
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
