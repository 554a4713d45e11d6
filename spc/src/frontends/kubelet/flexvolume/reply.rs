//! Reply of the FlexVolume driver: one JSON object.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Result of a call, with kubelet's words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The call succeeded.
    Success,
    /// The call failed; kubelet tries again.
    Failure,
    /// The driver does not support the call. kubelet uses its own default for it, and does not call
    /// again until it is restarted.
    #[serde(rename = "Not supported")]
    NotSupported,
}

/// Capabilities of the driver, in the reply to `init`. kubelet assumes defaults for missing fields,
/// so every field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Whether volumes are attached to nodes before they are mounted.
    attach: bool,
    /// Whether kubelet sets the SELinux label of each file.
    selinux_relabel: bool,
    /// Whether kubelet gives each file to the pod's group.
    fs_group: bool,
    /// Whether statfs(2) on the volume returns its size and use.
    supports_metrics: bool,
    /// Whether kubelet calls `expandfs` after a volume was enlarged.
    #[serde(rename = "requiresFSResize")]
    requires_fs_resize: bool,
}

/// Reply to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Result of the call.
    pub status: Status,
    /// Reason for the status, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume_name: Option<String>,
    /// Size of the volume in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume_new_size: Option<u64>,
}

impl Reply {
    const fn with_status(status: Status) -> Self {
        Self {
            status,
            message: None,
            capabilities: None,
            volume_name: None,
            volume_new_size: None,
        }
    }

    /// Returns a reply for a call that succeeded.
    pub fn success() -> Self {
        Self::with_status(Status::Success)
    }

    /// Returns the reply to `init`.
    ///
    /// Volumes are on servers, so kubelet neither attaches nor relabels them. With `fs_group`,
    /// kubelet sets the group of files, because only kubelet knows the pod's policy for it.
    pub fn capabilities(fs_group: bool) -> Self {
        Self {
            capabilities: Some(Capabilities {
                attach: false,
                selinux_relabel: false,
                fs_group,
                supports_metrics: true,
                requires_fs_resize: true,
            }),
            ..Self::success()
        }
    }

    /// Returns a reply with the name of a volume.
    pub fn named(name: String) -> Self {
        Self {
            volume_name: Some(name),
            ..Self::success()
        }
    }

    /// Returns a reply with the size of a volume in bytes.
    pub fn size(bytes: u64) -> Self {
        Self {
            volume_new_size: Some(bytes),
            ..Self::success()
        }
    }

    /// Returns a reply for a call that failed, with the reason.
    pub fn failure(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::with_status(Status::Failure)
        }
    }

    /// Returns a reply for a call that the driver does not support, with the reason.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::with_status(Status::NotSupported)
        }
    }

    /// Returns the reply as JSON, on one line.
    pub fn text(&self) -> String {
        // Strings, numbers and booleans always convert to JSON.
        serde_json::to_string(self).unwrap_or_else(|_| r#"{"status":"Failure"}"#.into())
    }

    /// Parses the text of [`Reply::text`].
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::failure(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn json(reply: &Reply) -> Value {
        serde_json::from_str(&reply.text()).unwrap()
    }

    #[test]
    fn replies_use_the_fields_of_kubelet() {
        assert_eq!(json(&Reply::success()), json!({"status": "Success"}));
        let capabilities = json(&Reply::capabilities(true));
        assert_eq!(capabilities["capabilities"]["attach"], false);
        assert_eq!(capabilities["capabilities"]["selinuxRelabel"], false);
        assert_eq!(capabilities["capabilities"]["requiresFSResize"], true);
        assert_eq!(capabilities["capabilities"]["fsGroup"], true);
        let without = json(&Reply::capabilities(false));
        assert_eq!(without["capabilities"]["fsGroup"], false);
        let unsupported = Reply::not_supported("why");
        assert_eq!(
            json(&unsupported),
            json!({"status": "Not supported", "message": "why"})
        );
        let named = Reply::named("a".into());
        assert_eq!(
            json(&named),
            json!({"status": "Success", "volumeName": "a"})
        );
        assert_eq!(json(&Reply::size(7))["volumeNewSize"], 7);
        for reply in [
            Reply::capabilities(false),
            named,
            Reply::failure("a\n\"b\"\u{1}"),
        ] {
            assert!(!reply.text().contains('\n'));
            assert_eq!(Reply::read(&reply.text()), Some(reply));
        }
        assert_eq!(Reply::read(""), None);
        assert_eq!(Reply::read("{}"), None);
    }
}
