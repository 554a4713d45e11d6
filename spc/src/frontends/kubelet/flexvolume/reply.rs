//! What a FlexVolume driver answers: one JSON object.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How a call ended, in kubelet's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Done.
    Success,
    /// Not done; kubelet tries again.
    Failure,
    /// Never done: kubelet does not ask again until it is restarted, and does something of its own.
    #[serde(rename = "Not supported")]
    NotSupported,
}

/// What kubelet may leave to the driver and what not; what is not said it takes for given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Volumes are attached to nodes before they are mounted.
    attach: bool,
    /// Files are given labels of SELinux, one by one.
    selinux_relabel: bool,
    /// Files are given to the group of the pod, one by one.
    fs_group: bool,
    /// statfs(2) tells how full a volume is.
    supports_metrics: bool,
    /// The file system has to be told that its volume has grown.
    #[serde(rename = "requiresFSResize")]
    requires_fs_resize: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// How it ended.
    pub status: Status,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume_name: Option<String>,
    /// Bytes that a volume has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume_new_size: Option<u64>,
}

impl Reply {
    const fn of(status: Status) -> Self {
        Self {
            status,
            message: None,
            capabilities: None,
            volume_name: None,
            volume_new_size: None,
        }
    }

    /// It is done.
    pub fn success() -> Self {
        Self::of(Status::Success)
    }

    /// What the driver can do. Volumes are on servers, so none is attached and none relabelled. The group of a pod is
    /// kubelet's work, for only kubelet knows how the pod wants it done.
    pub fn capabilities() -> Self {
        Self {
            capabilities: Some(Capabilities {
                attach: false,
                selinux_relabel: false,
                fs_group: true,
                supports_metrics: true,
                requires_fs_resize: true,
            }),
            ..Self::success()
        }
    }

    /// The name of a volume.
    pub fn named(name: String) -> Self {
        Self {
            volume_name: Some(name),
            ..Self::success()
        }
    }

    /// How many bytes a volume has.
    pub fn size(bytes: u64) -> Self {
        Self {
            volume_new_size: Some(bytes),
            ..Self::success()
        }
    }

    /// It is not done, for this reason.
    pub fn failure(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::of(Status::Failure)
        }
    }

    /// It is never done, for this reason.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::of(Status::NotSupported)
        }
    }

    /// As JSON, on one line.
    pub fn text(&self) -> String {
        // Strings, numbers and truth values can always be written.
        serde_json::to_string(self).unwrap_or_else(|_| r#"{"status":"Failure"}"#.into())
    }

    /// Reads what [`Reply::text`] wrote.
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
    fn answers_are_in_kubelets_words() {
        assert_eq!(json(&Reply::success()), json!({"status": "Success"}));
        let capabilities = json(&Reply::capabilities());
        assert_eq!(capabilities["capabilities"]["attach"], false);
        assert_eq!(capabilities["capabilities"]["selinuxRelabel"], false);
        assert_eq!(capabilities["capabilities"]["requiresFSResize"], true);
        let not = Reply::not_supported("why");
        assert_eq!(
            json(&not),
            json!({"status": "Not supported", "message": "why"})
        );
        let named = Reply::named("a".into());
        assert_eq!(
            json(&named),
            json!({"status": "Success", "volumeName": "a"})
        );
        assert_eq!(json(&Reply::size(7))["volumeNewSize"], 7);
        for reply in [
            Reply::capabilities(),
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
