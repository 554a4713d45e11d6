//! The record of one mount.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::state::Route;

/// How far a mount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Begun; if its maker is dead, it has to be undone.
    Mounting,
    /// Proven.
    Mounted,
    /// Being taken away; if its unmaker is dead, either that has to be finished, or it never began.
    Unmounting,
}

/// What is remembered of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the claim and mark of the processes.
    pub id: String,
    /// How far it has come.
    pub state: State,
    /// Canonical path on the host.
    pub target: String,
    /// The path as it was asked for, on the host.
    pub written: String,
    /// Type that was asked for.
    pub fs_type: String,
    /// Source that was asked for.
    pub source: String,
    /// Types of which the mount table shows one; any if there are none.
    pub shows: Vec<String>,
    /// Source that it shows, if that can be told beforehand.
    pub shows_source: Option<String>,
    /// Options that were asked for.
    pub options: String,
    /// Equal for requests that mean the same mount.
    pub request: String,
    /// How it got to the host.
    pub route: Route,
    /// Mount id, as in mountinfo; 0 until it is proven.
    pub mount_id: u64,
    /// Mount id that is never used again; 0 where the kernel has none.
    pub unique_id: u64,
    /// Id of the mount that the target was pinned on.
    pub on: u64,
    /// Processes that keep it alive, by their ids in the container.
    pub daemon: Vec<i32>,
    /// The client root whose programs made it, and which it needs; none if that was the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Seconds since the epoch.
    pub since: u64,
    /// The id of the request that made it, in logs.
    #[serde(default)]
    pub request_id: String,
    /// The device that was attached for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OnDevice>,
    /// The life of the machine that it belongs to, as [`boot`] tells it.
    #[serde(default)]
    pub boot: String,
    /// What it takes to make it once more, should its daemon die; none where there is no daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// What is remembered of a mount so that another can take its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// Where its secrets came from, `KEY=file:PATH` or `KEY=` and what cannot be read twice; never a value.
    pub secrets: Vec<String>,
    /// How often its daemon died and another mount took its place.
    pub repairs: u32,
    /// Name of the claim, and mark of the processes, of the mount that is being made now to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub making: Option<String>,
}

/// An attached device, as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// Its name.
    pub name: String,
    /// What it is reached through.
    pub through: String,
}

impl Record {
    /// Seconds since the mount was made.
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.since)
    }

    /// Whether the machine has not been started anew since: where `/run` outlives that, records do as well, and the ids
    /// in them belong to other mounts. A mount is not forgotten because nobody can tell.
    pub fn is_of_this_boot(&self) -> bool {
        let boot = boot();
        self.boot.is_empty() || boot.is_empty() || self.boot == boot
    }
}

/// The kernel's name for this life of the machine; empty if it does not tell.
pub fn boot() -> &'static str {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let Some(known) = KNOWN.get() else {
        let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        return read.map_or("", |id| KNOWN.get_or_init(|| id.trim_end().to_owned()));
    };
    known
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
