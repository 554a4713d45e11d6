//! Pipeline from a request to a record. All frontends mount through [`mount`].

use std::path::Path;
use std::sync::Arc;

use crate::client::{enter, root};
use crate::error::{Class, Error, Reason, Result, show};
use crate::host::mountinfo::Entry;
use crate::host::namespace::shares_namespace;
use crate::host::runs_in::RunsIn;
use crate::host::target;
use crate::liveness::health::Health;
use crate::liveness::probe;
use crate::mount::attempt::Attempt;
use crate::mount::deadline::Deadline;
use crate::mount::{Plan, Request, failover, proof};
use crate::process::interrupts::Interrupts;
use crate::recovery::records::{load_record, reconcile_record};
use crate::state::events::{Operation, OperationTimer};
use crate::state::record::{Record, State};
use crate::state::{Route, Session};

/// Outcome of a successful request.
#[derive(Debug)]
pub enum MountOutcome {
    /// New mount.
    Mounted(Record),
    /// Mount that an earlier, equal request has made.
    AlreadyMounted(Record),
}

/// Makes a mount, verifies it and records it. On an error nothing is left of the mount.
///
/// # Errors
/// The request is invalid, the mount fails, or the new mount cannot be verified.
pub fn mount(session: &Session, request: Request, interrupts: &Interrupts) -> Result<MountOutcome> {
    let type_hint = request.type_hint();
    let timer = OperationTimer::start(Operation::Mount);
    let (target, fs_type) = (request.target.clone(), request.fs_type.clone());
    let outcome = make(session, request, interrupts).map_err(|error| match type_hint {
        Some(hint) if error.class() == Class::Mount => error.hint_also(&hint),
        _ => error,
    });
    match &outcome {
        Ok(MountOutcome::AlreadyMounted(_)) => {}
        Ok(MountOutcome::Mounted(record)) => {
            timer.report(
                &session.host,
                record.target.as_ref(),
                &record.fs_type,
                &outcome,
            );
        }
        Err(_) => timer.report(&session.host, &target, &fs_type, &outcome),
    }
    outcome
}

fn make(session: &Session, request: Request, interrupts: &Interrupts) -> Result<MountOutcome> {
    let limit = Deadline::new(request.timeout);
    let deadline = limit.at();
    let mut plan = Plan::new(request, &session.host)?;
    if session.runs_in == RunsIn::Container && plan.outlives_container() {
        if shares_namespace(session.host.settings(), "pid") == Some(false) {
            tracing::warn!(
                "this mount ends with the container, which has its own PID namespace; start the container with --pid=host to keep the mount"
            );
        } else {
            enter::exec_in_client_root(&session.host, &root::own_id()?)?;
        }
    }
    let secrets = &mut plan.request.secrets;
    secrets.read(&session.host, interrupts.until(deadline))?;
    let _lock = session
        .ledger
        .lock(&plan.target, interrupts.until(deadline))?;
    if let Some(record) = load_record(session, &plan.target)? {
        match reconcile_record(session, &record)? {
            Some(entry) if record.request == plan.fingerprint => {
                tracing::debug!(mount = entry.id, "already mounted");
                return already_mounted(session, record);
            }
            Some(entry) => return Err(occupied(&plan.target, &entry)),
            None => {}
        }
    }
    let pin = {
        let (target, rules) = (plan.target.clone(), plan.rules);
        move || target::pin(&target, rules)
    };
    let (pinned, created_dirs) = session.host.run("pinning the target", pin)??;
    let pinned = Arc::new(pinned);
    if pinned.path != plan.target {
        return Err(proof::target_moved(&plan.target));
    }
    let mut on_automount = false;
    if pinned.mount.is_root {
        let target = Arc::clone(&pinned);
        let entry = session
            .host
            .run("looking at the target", move || target.entry())??;
        match entry {
            // An automount point is there to be mounted over. Until then it blocks all other
            // process groups, including the daemon of a helper.
            Some(entry) if entry.fs_type == "autofs" => {
                on_automount = true;
                if plan.route == Route::Preload {
                    plan.route = Route::Graft;
                }
            }
            Some(entry) => return Err(occupied(&plan.target, &entry)),
            None => {
                let what = format!("{} is already a mount point", show(&plan.target));
                return Err(Error::mount(what).reason_is(Reason::Occupied));
            }
        }
    }
    let host = &*session.host;
    let record = failover::mount(&mut plan, host, &limit, interrupts, |plan, budget| {
        Attempt::new(session, plan, Arc::clone(&pinned), on_automount).run(budget, interrupts)
    })?;
    created_dirs.keep();
    Ok(MountOutcome::Mounted(record))
}

/// Returns the outcome for a request that is equal to an earlier one: the mount must still respond.
fn already_mounted(session: &Session, record: Record) -> Result<MountOutcome> {
    let record = Record {
        state: State::Mounted,
        ..record
    };
    let cause = match probe::probe_all(session, std::slice::from_ref(&record))?[..] {
        [Health::Stale] => "its daemon or server is gone",
        [Health::Hung] => "it does not respond",
        _ => return Ok(MountOutcome::AlreadyMounted(record)),
    };
    Err(
        Error::mount(format!("{} is mounted, but dead", record.target))
            .because(cause)
            .reason_is(Reason::Dead)
            .hint("unmount it with `spc umount -l`, then mount it again"),
    )
}

/// Returns the error for a target with another mount.
fn occupied(target: &Path, entry: &Entry) -> Error {
    Error::mount(format!(
        "{} is already mounted: {} ({})",
        show(target),
        entry.source,
        entry.fs_type
    ))
    .reason_is(Reason::Occupied)
    .hint("unmount it first, or choose another target")
}
