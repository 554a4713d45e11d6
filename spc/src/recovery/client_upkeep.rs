//! Upkeep of client namespaces: stops unused services, detaches unused disks, removes stale
//! records.
//!
//! The upkeep of a namespace runs inside it, because the programs and their files are only there.
//! `spc serve` starts it after an unmount on the host.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::block::detach;
use crate::client::{enter, namespace, root};
use crate::error::{Class, Error, Result};
use crate::host::runs_in::RunsIn;
use crate::host::service;
use crate::process::cancel::CancelToken;
use crate::process::run::wait_or_kill;
use crate::recovery::records::reconcile_record;
use crate::recovery::services;
use crate::state::presence::entry_of;
use crate::state::{Record, Session};

/// Time limit of the upkeep of one client namespace.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the upkeep of all client namespaces that need it. Returns false if work is left.
pub fn run_all(session: &Session, records: &[Record]) -> bool {
    if session.runs_in != RunsIn::Container {
        return true;
    }
    let ids = root::all(&session.host).unwrap_or_default();
    let results = ids.iter().map(|id| {
        if !needs_upkeep(session, records, id)? {
            return Ok(true);
        }
        let ended = run(session, id)?;
        match ended.code() {
            Some(0) => Ok(true),
            Some(code) if code == i32::from(Class::Some.exit_code()) => Ok(false),
            _ => Err(
                Error::system(format!("cannot clean up the client root {id}"))
                    .because(ended.to_string()),
            ),
        }
    });
    let results: Vec<bool> = results
        .map(|result: Result<bool>| {
            result.unwrap_or_else(|error| {
                tracing::warn!("{error}");
                false
            })
        })
        .collect();
    results.iter().all(|done| *done)
}

/// Returns whether a client namespace has running services, or a device without its mount.
fn needs_upkeep(session: &Session, records: &[Record], id: &str) -> Result<bool> {
    let Some(holder) = namespace::find(&session.host, id)? else {
        return Ok(false);
    };
    let root = format!("/proc/{}/root", holder.pid);
    let started = service::any_started(Path::new(&root));
    if started {
        return Ok(true);
    }
    for record in records {
        let is_its = record.root.as_deref() == Some(id) && record.device.is_some();
        if is_its && entry_of(session, record)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs `spc tend` in a client namespace.
fn run(session: &Session, id: &str) -> Result<ExitStatus> {
    let fail = |e| Error::system(format!("cannot run spc in the client root {id}")).because(e);
    let argv = ["spc", "tend"].map(OsString::from);
    let mut entering = enter::command(&session.host, id, &argv)?;
    let command = &mut entering.command;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    wait_or_kill(child.map_err(fail)?, LIMIT).map_err(fail)
}

/// Runs the upkeep of the client namespace of this process (`spc tend`). Returns false if work is
/// left.
///
/// # Errors
/// Fails if the ledger cannot be read.
pub fn run_here(session: &Session) -> Result<bool> {
    let RunsIn::ClientRoot(own) = &session.runs_in else {
        return Ok(true);
    };
    let (records, _) = session.ledger.all()?;
    let mut done = true;
    for record in &records {
        if record.root.as_ref() != Some(own) || entry_of(session, record)?.is_some() {
            continue;
        }
        // The lock holder, if any, handles the record.
        let target = Path::new(&record.target);
        let Ok(_lock) = session.ledger.lock(target, CancelToken::at(Instant::now())) else {
            done = false;
            continue;
        };
        if let Some(record) = session.ledger.get(target)? {
            reconcile_record(session, &record)?;
        }
    }
    done &= detach::collect_garbage(session)?;
    Ok(services::reconcile(session) && done)
}
