//! Size, use and condition of a volume, within a limit that holds even if the server does not
//! respond.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::liveness::health::Health;
use crate::liveness::message::Counts;
use crate::liveness::probe::{self, ProbeTarget, Probed};
use crate::process::cancel::CancelToken;
use crate::state::Record;

/// Limit for the probe of a mount, statfs(2) included.
const LIMIT: Duration = Duration::from_millis(1500);

/// Size and use in one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Number of units that a user other than root may still use.
    pub available: i64,
    /// Number of all units.
    pub total: i64,
    /// Number of used units.
    pub used: i64,
}

/// Figures of a volume: bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes.
    pub bytes: Usage,
    /// Inodes.
    pub inodes: Usage,
}

/// Size, use and condition of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Figures; none if the volume does not respond.
    pub figures: Option<Figures>,
    /// Fault that keeps pods from using the volume, in words.
    pub problem: Option<String>,
}

/// Collects the figures and the condition of a recorded mount.
///
/// # Errors
/// The mount cannot be probed, or statfs(2) fails.
pub fn collect(record: &Record) -> Result<Stats> {
    let problem = |text: &str| {
        Ok(Stats {
            figures: None,
            problem: Some(text.to_owned()),
        })
    };
    let probed = probe(record)?;
    match (probed.health, probed.counts) {
        (Health::Hung, _) => problem("the volume does not respond"),
        (Health::Ok, Some(counts)) => Ok(Stats {
            figures: Some(figures(&counts)),
            problem: None,
        }),
        (Health::Ok, None) => Err(Error::mount(format!("cannot count {}", record.target))),
        _ => problem(&dead_text(record)),
    }
}

/// Returns whether a process that accesses a recorded mount would block.
pub fn hangs(record: &Record) -> bool {
    probe(record).is_ok_and(|probed| probed.health == Health::Hung)
}

fn probe(record: &Record) -> Result<Probed> {
    let target = ProbeTarget {
        target: record.target.clone().into(),
        mount: match record.unique_id {
            0 => record.mount_id,
            unique => unique,
        },
        counts: true,
    };
    probe::probe(&target, None, CancelToken::at(Instant::now() + LIMIT))
}

/// Returns the description of a mount whose daemon or server is gone.
fn dead_text(record: &Record) -> String {
    let lost = record.repair.iter().flat_map(|repair| &repair.secrets);
    let lost = lost
        .filter_map(|secret| secret.split_once('='))
        .find(|(_, from)| !from.starts_with("file:"));
    match lost {
        Some((key, _)) => format!(
            "the daemon or server of the volume is gone; spc cannot mount it again, because its \
             secret {key} is not kept: delete the pods, and they get it again"
        ),
        None => "the daemon or server of the volume is gone".into(),
    }
}

/// Converts the counts of statfs(2) to bytes and inodes.
fn figures(counts: &Counts) -> Figures {
    let usage = |[total, free, available]: [u64; 3], unit: u64| {
        let units = |number: u64| i64::try_from(number.saturating_mul(unit)).unwrap_or(i64::MAX);
        Usage {
            available: units(available),
            total: units(total),
            used: units(total.saturating_sub(free)),
        }
    };
    Figures {
        bytes: usage(counts.blocks, counts.unit),
        inodes: usage(counts.inodes, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_never_negative() {
        let counted = |blocks: u64, free: u64, unit: u64| Counts {
            unit,
            blocks: [blocks, free, free],
            inodes: [0; 3],
        };
        let found = figures(&counted(10, 4, 512)).bytes;
        assert_eq!(
            (found.total, found.used, found.available),
            (5120, 3072, 2048)
        );
        // A server without a limit, and one that reports nonsense.
        let found = figures(&counted(u64::MAX, u64::MAX, 4096)).bytes;
        assert_eq!((found.total, found.used), (i64::MAX, 0));
        assert_eq!(figures(&counted(1, 2, 1)).bytes.used, 0);
    }
}
