//! The services that mounts share: ended with the last mount that needs them, started again if they died.

use std::cell::Cell;

use super::ledger::State;
use super::mounter::Session;
use crate::error::{Error, Result, errno_text};
use crate::host::{mountinfo, process, rpc, service};
use crate::kinds::{self, Shared};

/// Ends what was started here and nothing needs any more. What cannot be ended is logged: the mount is gone all the same.
pub fn release(session: &Session) {
    // One that needs another has to be gone before it.
    for shared in kinds::shared().rev() {
        // Asked once: the second time, rpcbind itself may be the one that is stopped, and would not answer.
        let client = Cell::new(shared.client);
        let needed = || needed(session, shared, client.take());
        match service::end(&shared.service, needed) {
            Ok(true) => tracing::info!(service = shared.service.name, "ended; no mount needs it"),
            Ok(false) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// As [`release`], and starts again what is needed and died. False if something may soon be needed no more, which no event
/// tells.
pub fn tend(session: &Session) -> bool {
    release(session);
    for shared in kinds::shared() {
        if let Err(error) = service::revive(&shared.service) {
            tracing::warn!("{error}");
        }
    }
    let started = |shared: &&Shared| service::started(&shared.service);
    let mounted = |shared: &Shared| is_mounted(session, shared).unwrap_or_default();
    kinds::shared().filter(started).all(mounted)
}

/// Ends all that was started here, before the container's end kills it: some write down what they know.
pub fn leave() {
    for shared in kinds::shared().rev() {
        if let Err(error) = service::leave(&shared.service) {
            tracing::warn!("{error}");
        }
    }
}

/// Whether a mount of the host needs a service, or one that is being made may, or one that was taken away still does.
fn needed(session: &Session, shared: &Shared, client: Option<(u32, u32)>) -> Result<bool> {
    if shared.helpers.iter().any(|name| process::runs(name)) {
        return Ok(true);
    }
    let (records, _) = session.ledger.all()?;
    let begun = records.iter().any(|record| {
        record.state == State::Mounting && shared.kinds.contains(&record.fs_type.as_str())
    });
    let is_registered = |(program, version)| rpc::is_registered(program, version);
    Ok(begun || is_mounted(session, shared)? || client.is_some_and(is_registered))
}

fn is_mounted(session: &Session, shared: &Shared) -> Result<bool> {
    let table = session
        .host
        .run("looking at the mounts", mountinfo::read)?
        .map_err(|e| Error::system("cannot read the host's mount table").because(errno_text(e)))?;
    Ok(table
        .iter()
        .any(|entry| (shared.needed_by)(&entry.fs_type, &entry.options)))
}
