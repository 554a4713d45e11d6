//! Services that mounts share: stopped with the last mount that needs them, restarted if they die.

use crate::error::{Error, Result};
use crate::host::mountinfo::{self, Entry};
use crate::host::{rpc, service};
use crate::kinds;
use crate::kinds::model::SharedService;
use crate::process::candidates;
use crate::state::Session;
use crate::state::record::{Record, State};

/// Returns whether a mount may have used a shared service.
pub fn may_need(record: &Record) -> bool {
    let kind = record.fs_type.as_str();
    record.device.is_some() || kinds::shared_services().any(|shared| shared.kinds.contains(&kind))
}

/// Stops the services that spc started here and no mount needs. Failures are only logged, because
/// the mount itself is gone.
pub fn stop_unused(session: &Session) {
    // In reverse order, because a service may depend on an earlier one.
    for shared in kinds::shared_services().rev() {
        let needed = || Ok(is_relied_on(shared) || needed(session, shared)?);
        match service::stop_unused(&shared.service, needed) {
            Ok(true) => tracing::info!(
                service = shared.service.name,
                "service stopped; no mount needs it"
            ),
            Ok(false) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// Stops unused services and restarts dead ones that are needed. Returns false if a service may
/// become unused without an event, so that the caller has to check again.
pub fn reconcile(session: &Session) -> bool {
    stop_unused(session);
    for shared in kinds::shared_services() {
        if let Err(error) = service::revive(&shared.service) {
            tracing::warn!("{error}");
        }
    }
    let started = |shared: &&SharedService| service::was_started(&shared.service);
    let used = |shared: &SharedService| {
        attached(session, shared).unwrap_or_default()
            || is_mounted(session, shared).unwrap_or_default()
    };
    kinds::shared_services().filter(started).all(used)
}

/// Returns whether a device that needs the service is attached or being attached.
fn attached(session: &Session, shared: &SharedService) -> Result<bool> {
    let Some(prefix) = shared.session_prefix else {
        return Ok(false);
    };
    let is_its = |session_key: &str| session_key.starts_with(prefix);
    let needs = |record: &Record| {
        record
            .device
            .as_ref()
            .is_some_and(|d| is_its(&d.session_key))
    };
    let any_attached = || -> Result<bool> {
        let attachments = session.ledger.attachments()?;
        Ok(attachments.iter().any(|all| is_its(&all.session_key)))
    };
    // Checked twice, because a device may be attached while the ledger is read.
    Ok(any_attached()? || session.ledger.has(needs)? || any_attached()?)
}

/// Stops all services that spc started here before the container ends, because some save their
/// state when they stop.
pub fn shut_down() {
    for shared in kinds::shared_services().rev() {
        if let Err(error) = service::shut_down(&shared.service) {
            tracing::warn!("{error}");
        }
    }
}

/// Returns whether a service runs that depends on this one: a later one for the same kinds.
fn is_relied_on(shared: &SharedService) -> bool {
    let is_this = |other: &&SharedService| other.service.name == shared.service.name;
    kinds::shared_services()
        .skip_while(|other| !is_this(other))
        .skip(1)
        .any(|other| other.kinds == shared.kinds && service::was_started(&other.service))
}

/// Returns whether a mount of the host needs the service. Mounts in progress count, and so do
/// mounts that the kernel has not released yet.
fn needed(session: &Session, shared: &SharedService) -> Result<bool> {
    if shared
        .helpers
        .iter()
        .any(|name| candidates::is_running(name))
    {
        return Ok(true);
    }
    let is_mounting = |record: &Record| {
        record.state == State::Mounting && shared.kinds.contains(&record.fs_type.as_str())
    };
    let client = |(program, version)| rpc::is_registered(program, version);
    // The cheap checks come first. A mount in progress moves from the ledger to the mount table, so
    // the table is read again after the ledger.
    Ok(is_mounted(session, shared)?
        || session.ledger.has(is_mounting)?
        || is_mounted(session, shared)?
        || attached(session, shared)?
        || shared.rpc_client.is_some_and(client))
}

/// Returns whether the host has a mount that needs the service.
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
