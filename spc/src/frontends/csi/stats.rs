//! Size, use and condition of a volume, in a time that no server decides.

use std::time::{Duration, Instant};

use rustix::fs::{StatVfs, statvfs};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::liveness::health::Health;
use crate::liveness::probe::{self, ProbeTarget};
use crate::process::cancel::CancelToken;
use crate::state::{Record, Session};

/// Time for the mount to respond.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Time for the file system to count, once it has responded.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

/// Size and use in one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Units that a user other than root may still use.
    pub available: i64,
    /// All units.
    pub total: i64,
    /// Used units.
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

/// Result of a look at a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Figures; none if the volume does not respond.
    pub figures: Option<Figures>,
    /// Words for a volume that pods cannot use.
    pub problem: Option<String>,
}

/// Looks at a recorded mount.
///
/// # Errors
/// The mount cannot be probed.
pub fn look(session: &Session, record: &Record) -> Result<Stats> {
    let target = ProbeTarget {
        target: record.target.clone().into(),
        mount: match record.unique_id {
            0 => record.mount_id,
            unique => unique,
        },
    };
    let cancel = CancelToken::at(Instant::now() + PROBE_LIMIT);
    let problem = |text: &str| {
        Ok(Stats {
            figures: None,
            problem: Some(text.to_owned()),
        })
    };
    match probe::probe(&target, None, cancel)? {
        Health::Hung => return problem("the volume does not respond"),
        Health::Ok => {}
        _ => return problem(&dead(record)),
    }
    let path = target.target;
    let counted = session
        .host
        .run_within("counting a volume", COUNT_LIMIT, move || statvfs(&path));
    match counted {
        Ok(Ok(counted)) => Ok(Stats {
            figures: Some(figures(&counted)),
            problem: None,
        }),
        Ok(Err(error)) => {
            Err(Error::mount(format!("cannot count {}", record.target)).because(error))
        }
        Err(_) => problem("the volume does not respond"),
    }
}

/// Returns the words for a mount whose daemon or server is gone.
fn dead(record: &Record) -> String {
    let lost = record.repair.iter().flat_map(|repair| &repair.secrets);
    let lost = lost
        .filter_map(|secret| secret.split_once('='))
        .find(|(_, from)| !from.starts_with("file:"));
    match lost {
        Some((key, _)) => format!(
            "the daemon or server of the volume is gone; spc cannot mount it again, because its secret {key} is not kept: delete the pods, and they get it again"
        ),
        None => "the daemon or server of the volume is gone".into(),
    }
}

fn figures(counted: &StatVfs) -> Figures {
    let usage = |total: u64, free: u64, available: u64, unit: u64| {
        let units = |number: u64| i64::try_from(number.saturating_mul(unit)).unwrap_or(i64::MAX);
        Usage {
            available: units(available),
            total: units(total),
            used: units(total.saturating_sub(free)),
        }
    };
    let unit = counted.f_frsize.max(1);
    Figures {
        bytes: usage(counted.f_blocks, counted.f_bfree, counted.f_bavail, unit),
        inodes: usage(counted.f_files, counted.f_ffree, counted.f_favail, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_never_negative() {
        let counted = |blocks: u64, free: u64, size: u64| StatVfs {
            f_blocks: blocks,
            f_bfree: free,
            f_bavail: free,
            f_frsize: size,
            // The root directory is a file system with these.
            ..statvfs("/").unwrap()
        };
        let found = figures(&counted(10, 4, 512)).bytes;
        assert_eq!(
            (found.total, found.used, found.available),
            (5120, 3072, 2048)
        );
        // Servers without a limit, and wrong ones.
        let found = figures(&counted(u64::MAX, u64::MAX, 4096)).bytes;
        assert_eq!((found.total, found.used), (i64::MAX, 0));
        assert_eq!(figures(&counted(1, 2, 1)).bytes.used, 0);
    }
}
