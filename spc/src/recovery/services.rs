//! The services that mounts share: ended with the last mount that needs them, started again if they died.

use crate::error::{Error, Result};
use crate::host::mountinfo::{self, Entry};
use crate::host::{rpc, service};
use crate::kinds;
use crate::kinds::model::SharedService;
use crate::process::marks;
use crate::state::Session;
use crate::state::record::{Record, State};

/// Whether a mount may have needed one.
pub fn may_need(record: &Record) -> bool {
    let kind = record.fs_type.as_str();
    record.device.is_some() || kinds::shared_services().any(|shared| shared.kinds.contains(&kind))
}

/// Ends what was started here and nothing needs any more. What cannot be ended is logged: the mount is gone all the same.
pub fn release(session: &Session) {
    // One that needs another has to be gone before it.
    for shared in kinds::shared_services().rev() {
        let needed = || Ok(is_relied_on(shared) || needed(session, shared)?);
        match service::end(&shared.service, needed) {
            Ok(true) => tracing::info!(service = shared.service.name, "ended; no mount needs it"),
            Ok(false) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// As [`release`], and starts again what is needed and died. False if something may soon be needed no more, which no event
/// tells.
pub fn reconcile(session: &Session) -> bool {
    release(session);
    for shared in kinds::shared_services() {
        if let Err(error) = service::revive(&shared.service) {
            tracing::warn!("{error}");
        }
    }
    let started = |shared: &&SharedService| service::started(&shared.service);
    let used = |shared: &SharedService| {
        attached(session, shared).unwrap_or_default()
            || is_mounted(session, shared).unwrap_or_default()
    };
    kinds::shared_services().filter(started).all(used)
}

/// Whether devices are attached that need a service, or are being attached.
fn attached(session: &Session, shared: &SharedService) -> Result<bool> {
    let Some(begin) = shared.session_prefix else {
        return Ok(false);
    };
    let is_its = |through: &str| through.starts_with(begin);
    let needs = |record: &Record| record.device.as_ref().is_some_and(|d| is_its(&d.through));
    let any = || -> Result<bool> {
        let attachments = session.ledger.attachments()?;
        Ok(attachments.iter().any(|all| is_its(&all.session_key)))
    };
    // Once more, for what was attached while the whole ledger was read.
    Ok(any()? || session.ledger.has(needs)? || any()?)
}

/// Ends all that was started here, before the container's end kills it: some write down what they know.
pub fn shut_down() {
    for shared in kinds::shared_services().rev() {
        if let Err(error) = service::leave(&shared.service) {
            tracing::warn!("{error}");
        }
    }
}

/// Whether a service runs that comes after this one for the same kinds of mounts.
fn is_relied_on(shared: &SharedService) -> bool {
    let is_this = |other: &&SharedService| other.service.name == shared.service.name;
    kinds::shared_services()
        .skip_while(|other| !is_this(other))
        .skip(1)
        .any(|other| other.kinds == shared.kinds && service::started(&other.service))
}

/// Whether a mount of the host needs a service, or one that is being made may, or one that was taken away still does.
fn needed(session: &Session, shared: &SharedService) -> Result<bool> {
    if shared.helpers.iter().any(|name| marks::runs(name)) {
        return Ok(true);
    }
    let begun = |record: &Record| {
        record.state == State::Mounting && shared.kinds.contains(&record.fs_type.as_str())
    };
    let client = |(program, version)| rpc::is_registered(program, version);
    // In this order: what is found soon, before the whole ledger is read. A mount that is being made is in the ledger
    // until it is in the table.
    Ok(is_mounted(session, shared)?
        || session.ledger.has(begun)?
        || is_mounted(session, shared)?
        || attached(session, shared)?
        || shared.client.is_some_and(client))
}

fn is_mounted(session: &Session, shared: &SharedService) -> Result<bool> {
    let needed_by = shared.needed_by;
    let search = move || {
        let mut found = false;
        let needs = |entry: Entry| {
            found = needed_by(&entry.fs_type, &entry.options);
            Ok(found)
        };
        mountinfo::search(|_| true, needs).map(|()| found)
    };
    let searched = session.host.run("looking at the mounts", search)?;
    searched.map_err(|e| Error::system("cannot read the host's mount table").because(e))
}
