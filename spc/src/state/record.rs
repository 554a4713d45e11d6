//! Record of one mount, as stored in the ledger.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::state::Route;
use crate::state::csi::CsiVolume;

/// State of a recorded mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being mounted. If the command is dead, the mount has to be rolled back.
    Mounting,
    /// Mounted and verified on the host.
    Mounted,
    /// Being unmounted. If the command is dead, the unmount has to be finished, or it never began.
    Unmounting,
}

/// Record of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the redirect and mark of the helper's processes.
    pub id: String,
    /// State of the mount.
    pub state: State,
    /// Canonical path on the host.
    pub target: String,
    /// Requested path on the host, before symlinks were resolved.
    #[serde(rename = "written")]
    pub requested_target: String,
    /// Requested type.
    pub fs_type: String,
    /// Requested source.
    pub source: String,
    /// Types that the mount table may show; any type if empty.
    #[serde(rename = "shows")]
    pub expected_types: Vec<String>,
    /// Source that the mount table will show, if it is predictable.
    #[serde(rename = "shows_source")]
    pub expected_source: Option<String>,
    /// Requested options.
    pub options: String,
    /// Fingerprint of the request, equal for requests for the same mount.
    pub request: String,
    /// Route by which the mount got to the host.
    pub route: Route,
    /// Mount id, as in mountinfo; 0 until the mount is verified.
    pub mount_id: u64,
    /// Unique mount id, which is never reused; 0 where the kernel has none.
    pub unique_id: u64,
    /// Id of the mount that the target was pinned on.
    #[serde(rename = "on")]
    pub parent_mount_id: u64,
    /// Process ids of the daemons that serve the mount, as seen in the container.
    pub daemon: Vec<i32>,
    /// Client root file system whose programs made the mount; none for the container's programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Time of the mount, in seconds since the epoch.
    pub since: u64,
    /// Request id of the command that mounted, as in the log.
    #[serde(default)]
    pub request_id: String,
    /// Block device that was attached for the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
    /// Boot id of the mount, from [`boot`].
    #[serde(default)]
    pub boot: String,
    /// Data for a repair after the daemon died; none for mounts without a daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "again")]
    pub repair: Option<RepairInfo>,
    /// Whether the helper and its daemon run in a sandbox.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandboxed: bool,
    /// Volume of CSI that the mount belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi: Option<CsiVolume>,
}

/// Data for the repair of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairInfo {
    /// Origins of the secrets: `KEY=file:PATH`, or `KEY=` and an origin that cannot be read twice.
    /// Never a secret itself.
    pub secrets: Vec<String>,
    /// Number of repairs so far.
    pub repairs: u32,
    /// Id of the replacement mount while a repair is running: name of its redirect and mark of its
    /// processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "making")]
    pub pending_id: Option<String>,
}

/// Reference from a record to its attached device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// Name of the device.
    pub name: String,
    /// Key of the session of the device.
    #[serde(rename = "through")]
    pub session_key: String,
}

impl Record {
    /// Returns the seconds since the mount was made.
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.since)
    }

    /// Returns whether the record belongs to the current boot. Records outlive a reboot where
    /// `/run` is not a tmpfs, and their ids then belong to other mounts. An unknown boot id counts
    /// as the current one.
    pub fn is_of_this_boot(&self) -> bool {
        let boot = boot();
        self.boot.is_empty() || boot.is_empty() || self.boot == boot
    }
}

/// Returns the kernel's boot id; empty if it cannot be read.
pub fn boot() -> &'static str {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let Some(known) = KNOWN.get() else {
        let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        return read.map_or("", |id| KNOWN.get_or_init(|| id.trim_end().to_owned()));
    };
    known
}

/// Returns the current time in seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Returns the name of the log file for a target: at most 100 characters, with dashes for special
/// ones.
pub fn log_name(target: &Path) -> String {
    let text = target.to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            c
        } else {
            '-'
        }
    };
    text.trim_matches('/')
        .chars()
        .map(plain)
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written_by_an_earlier_version() -> Value {
        json!({
            "id": "0123456789abcdef", "state": "mounted", "target": "/mnt/data",
            "written": "/mnt/link", "fs_type": "glusterfs", "source": "192.0.2.1:/vol",
            "shows": ["fuse.glusterfs"], "shows_source": null, "options": "ro",
            "request": "glusterfs", "route": "preload", "mount_id": 40, "unique_id": 4_000,
            "on": 30, "daemon": [17], "since": 1_700_000_000
        })
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read_and_written_with_its_names() {
        let mut whole = written_by_an_earlier_version();
        let more = json!({
            "root": "0.1.0-0", "request_id": "r", "boot": "b",
            "device": {"name": "iscsi:d", "through": "iscsi:s"},
            "again": {"secrets": ["key=file:/f"], "repairs": 1, "making": "n"}
        });
        let more = more.as_object().cloned().unwrap_or_default();
        whole.as_object_mut().unwrap().extend(more);
        let record: Record = serde_json::from_value(whole.clone()).unwrap();
        assert_eq!(record.requested_target, "/mnt/link");
        assert_eq!(serde_json::to_value(&record).unwrap(), whole);
    }

    #[test]
    fn fields_that_earlier_versions_lacked_have_defaults() {
        let record: Record = serde_json::from_value(written_by_an_earlier_version()).unwrap();
        assert_eq!((record.root, record.repair), (None, None));
        assert!(record.request_id.is_empty() && record.boot.is_empty());
    }

    #[test]
    fn a_record_tells_its_age_and_whether_it_is_of_this_boot() {
        let mut record: Record = serde_json::from_value(written_by_an_earlier_version()).unwrap();
        record.since = now() - 5;
        assert!((5..60).contains(&record.age()));
        record.since = now() + 60;
        assert_eq!(record.age(), 0);
        assert_eq!(boot().len(), "0a3b0c4d-575f-41d3-9c91-0e7ed3dbb3fa".len());
        for (of, is_of_this_boot) in [("", true), (boot(), true), ("another", false)] {
            record.boot = of.into();
            assert_eq!(record.is_of_this_boot(), is_of_this_boot, "{of}");
        }
    }

    #[test]
    fn log_name_is_plain_and_short() {
        assert_eq!(log_name(Path::new("/mnt/a b\n,c")), "mnt-a-b--c");
        assert_eq!(
            log_name(Path::new(&format!("/{}", "x".repeat(500)))).len(),
            100
        );
    }
}
