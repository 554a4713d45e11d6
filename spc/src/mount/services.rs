//! The services that mounts share: ended with the last mount that needs them, started again if they died.

use super::ledger::State;
use super::mounter::Session;
use crate::error::{Error, Result, errno_text};
use crate::host::{mountinfo, process, service};
use crate::kinds::{self, Shared};

/// Ends what was started here and nothing needs any more. What cannot be ended is logged: the mount is gone all the same.
pub fn release(session: &Session) {
    for shared in kinds::shared() {
        match service::end(&shared.service, || needed(session, shared)) {
            Ok(true) => tracing::info!(service = shared.service.name, "ended; no mount needs it"),
            Ok(false) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// As [`release`], and starts again what is needed and died.
pub fn tend(session: &Session) {
    release(session);
    // In the order in which they need each other.
    for shared in kinds::shared().rev() {
        if let Err(error) = service::revive(&shared.service) {
            tracing::warn!("{error}");
        }
    }
}

/// Whether devices are attached that need a service, or are being attached.
fn attached(session: &Session, shared: &Shared) -> Result<bool> {
    let Some(begin) = shared.through else {
        return Ok(false);
    };
    let (records, _) = session.ledger.all()?;
    let mut devices = records.iter().filter_map(|record| record.device.as_ref());
    Ok(devices.any(|device| device.through.starts_with(begin))
        || session
            .ledger
            .attachments()?
            .iter()
            .any(|attachment| attachment.through.starts_with(begin)))
}

/// Whether a mount of the host needs a service, or one that is being made may.
fn needed(session: &Session, shared: &Shared) -> Result<bool> {
    if shared.helpers.iter().any(|name| process::runs(name)) {
        return Ok(true);
    }
    let (records, _) = session.ledger.all()?;
    if attached(session, shared)? {
        return Ok(true);
    }
    let made = |fs_type: &str| shared.kinds.contains(&fs_type);
    if records
        .iter()
        .any(|record| record.state == State::Mounting && made(&record.fs_type))
    {
        return Ok(true);
    }
    let table = session
        .host
        .run("looking at the mounts", mountinfo::read)?
        .map_err(|e| Error::system("cannot read the host's mount table").because(errno_text(e)))?;
    Ok(table
        .iter()
        .any(|entry| (shared.needed_by)(&entry.fs_type, &entry.options)))
}
