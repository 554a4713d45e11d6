//! Request to Record: the one way a mount is made, whichever door the request came through.

use std::path::Path;
use std::sync::Arc;

use crate::client::{enter, root};
use crate::error::{Class, Error, Reason, Result, show};
use crate::host::mountinfo::Entry;
use crate::host::namespace::shares;
use crate::host::runs_in::RunsIn;
use crate::host::target;
use crate::liveness::probe::{self, Health};
use crate::mount::attempt::Attempt;
use crate::mount::deadline::Deadline;
use crate::mount::{Plan, Request, failover, proof};
use crate::process::interrupts::Interrupts;
use crate::recovery::records::{known, reconcile_record};
use crate::state::events::{Operation, OperationTimer};
use crate::state::record::{Record, State};
use crate::state::{Route, Session};

/// What became of a request.
#[derive(Debug)]
pub enum Done {
    /// The mount was made.
    Mounted(Record),
    /// The same request had been fulfilled before.
    Already(Record),
}

/// Makes a mount, proves it and records it; on an error nothing is left of it.
///
/// # Errors
/// Anything from a bad request to a missing proof.
pub fn mount(session: &Session, request: Request, interrupts: &Interrupts) -> Result<Done> {
    let doubt = request.doubt();
    let asked = OperationTimer::start(Operation::Mount);
    let (target, fs_type) = (request.target.clone(), request.fs_type.clone());
    let done = make(session, request, interrupts).map_err(|error| match doubt {
        Some(doubt) if error.class() == Class::Mount => error.hint_also(&doubt),
        _ => error,
    });
    match &done {
        Ok(Done::Already(_)) => {}
        Ok(Done::Mounted(made)) => {
            asked.report(&session.host, made.target.as_ref(), &made.fs_type, &done);
        }
        Err(_) => asked.report(&session.host, &target, &fs_type, &done),
    }
    done
}

fn make(session: &Session, request: Request, interrupts: &Interrupts) -> Result<Done> {
    let limit = Deadline::new(request.timeout);
    let deadline = limit.at();
    let mut plan = Plan::make(request, &session.host)?;
    if session.runs_in == RunsIn::Container && plan.outlives_the_container() {
        if shares(session.host.settings(), "pid") == Some(false) {
            tracing::warn!(
                "this mount ends with the container, which has processes of its own; started with --pid=host, it would not"
            );
        } else {
            enter::same_again(&session.host, &root::own()?)?;
        }
    }
    let secrets = &mut plan.request.secrets;
    secrets.read(&session.host, interrupts.until(deadline))?;
    let _lock = session
        .ledger
        .lock(&plan.target, interrupts.until(deadline))?;
    if let Some(record) = known(session, &plan.target)? {
        match reconcile_record(session, &record)? {
            Some(entry) if record.request == plan.fingerprint => {
                tracing::debug!(mount = entry.id, "already mounted");
                return already(session, record);
            }
            Some(entry) => return Err(occupied(&plan.target, &entry)),
            None => {}
        }
    }
    let pin = {
        let (target, rules) = (plan.target.clone(), plan.rules);
        move || target::pin(&target, rules)
    };
    let (pinned, made) = session.host.run("pinning the target", pin)??;
    let pinned = Arc::new(pinned);
    if pinned.path != plan.target {
        return Err(proof::moved(&plan.target));
    }
    let mut waited_for = false;
    if pinned.mount.is_root {
        let seen = Arc::clone(&pinned);
        let entry = session
            .host
            .run("looking at the target", move || seen.entry())??;
        match entry {
            // An automount is there to be mounted over. Until that is done, only the process group that does it gets
            // past it, and a helper's daemon is in another one.
            Some(entry) if entry.fs_type == "autofs" => {
                waited_for = true;
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
    let record = failover::mount(&mut plan, host, &limit, interrupts, |plan, share| {
        Attempt::new(session, plan, Arc::clone(&pinned), waited_for).run(share, interrupts)
    })?;
    made.keep();
    Ok(Done::Mounted(record))
}

/// The same request again: it is fulfilled if the mount still answers.
fn already(session: &Session, record: Record) -> Result<Done> {
    let record = Record {
        state: State::Mounted,
        ..record
    };
    let dead = match probe::probe_all(session, std::slice::from_ref(&record))?[..] {
        [Health::Stale] => "its daemon or server is gone",
        [Health::Hung] => "it does not answer",
        _ => return Ok(Done::Already(record)),
    };
    Err(
        Error::mount(format!("{} is mounted, but dead", record.target))
            .because(dead)
            .reason_is(Reason::Dead)
            .hint("take it away with `spc umount -l`, then mount it again"),
    )
}

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
