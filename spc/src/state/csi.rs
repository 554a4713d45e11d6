//! Volumes of CSI, as records name them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Part that a mount plays for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Mount for the node, which no pod sees.
    Stage,
    /// Bind of a staged mount for a pod.
    Publish,
    /// Mount for one pod, which wrote the volume into its own specification.
    Inline,
}

/// Volume of CSI that a mount belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiVolume {
    /// Name of the driver.
    pub driver: String,
    /// Id of the volume.
    pub id: String,
    /// Part that the mount plays.
    pub role: Role,
    /// Access mode of the request.
    pub access: String,
    /// Target of the staged mount that is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_at: Option<String>,
}

impl fmt::Display for CsiVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            driver,
            id,
            role,
            access,
            ..
        } = self;
        write!(f, "{role:?} {driver} {id} {access}")
    }
}
