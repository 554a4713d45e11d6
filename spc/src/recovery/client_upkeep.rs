//! What a client namespace has besides daemons: services, and what belongs to attached disks. It is looked after from
//! inside, since nobody else has the programs' own files; `spc serve` sees to it when something was unmounted on the host.

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
use crate::recovery::records::reconcile_record;
use crate::recovery::services;
use crate::state::presence::entry_of;
use crate::state::{Record, Session};

/// How long it may take in one client namespace.
const LIMIT: Duration = Duration::from_secs(60);

/// Sees to all client namespaces that have something to be seen to. False if something is left to do.
pub fn all(session: &Session, records: &[Record]) -> bool {
    if session.runs_in != RunsIn::Container {
        return true;
    }
    let ids = root::all(&session.host).unwrap_or_default();
    let tended = ids.iter().map(|id| {
        if !needs_it(session, records, id)? {
            return Ok(true);
        }
        let ended = run(session, id)?;
        match ended.code() {
            Some(0) => Ok(true),
            Some(code) if code == i32::from(Class::Some.exit_code()) => Ok(false),
            _ => Err(Error::system(format!("cannot tend the client root {id}"))
                .because(ended.to_string())),
        }
    });
    let tended: Vec<bool> = tended
        .map(|tended: Result<bool>| {
            tended.unwrap_or_else(|error| {
                tracing::warn!("{error}");
                false
            })
        })
        .collect();
    tended.iter().all(|done| *done)
}

fn needs_it(session: &Session, records: &[Record], id: &str) -> Result<bool> {
    let Some(keeper) = namespace::find(&session.host, id)? else {
        return Ok(false);
    };
    let root = format!("/proc/{}/root", keeper.pid);
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

/// `spc tend` in a client namespace.
fn run(session: &Session, id: &str) -> Result<ExitStatus> {
    let fail = |e| Error::system("cannot run spc of a client root").because(e);
    let argv = ["spc", "tend"].map(OsString::from);
    let mut entering = enter::command(&session.host, id, &argv)?;
    let command = &mut entering.command;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(fail)?;
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait().map_err(fail)? {
            Some(ended) => return Ok(ended),
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            None => {
                // Nobody waits for one that hangs in the kernel.
                let _ = child.kill();
                return Err(Error::system(format!("cannot tend the client root {id}"))
                    .because(format!("no answer in {} s", LIMIT.as_secs())));
            }
        }
    }
}

/// `spc tend`: sees to the client namespace that this process is in. False if something is left to do.
///
/// # Errors
/// The ledger cannot be read.
pub fn here(session: &Session) -> Result<bool> {
    let RunsIn::ClientRoot(own) = &session.runs_in else {
        return Ok(true);
    };
    let (records, _) = session.ledger.all()?;
    let mut done = true;
    for record in &records {
        if record.root.as_ref() != Some(own) || entry_of(session, record)?.is_some() {
            continue;
        }
        // Whoever is at work on it will see to it.
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
