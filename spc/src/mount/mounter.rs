//! Request to Record: the one way a mount is made, whichever door the request came through.

use std::path::Path;
use std::sync::Arc;

use super::attempt::Attempt;
use super::deadline::Deadline;
use super::ledger::{Record, State};
use super::plan::Route;
use super::recover::{known, settle};
use super::run::Interrupts;
use super::{Ledger, Plan, Request, proof, servers};
use crate::client::{Place, enter, namespace, place, root};
use crate::error::{Class, Error, Reason, Result};
use crate::health::look::{self, Health};
use crate::health::report::{Asked, Operation};
use crate::host::claim::Claim;
use crate::host::mountinfo::Entry;
use crate::host::target::{self, show};
use crate::host::{Host, Settings, container};

/// What every command works with.
pub struct Session {
    /// Settings of shim and launcher.
    pub settings: Settings,
    /// The host's namespace, entered.
    pub host: Arc<Host>,
    /// The host's ledger.
    pub ledger: Ledger,
    /// Where this process runs.
    pub place: Place,
}

impl Session {
    /// Reads the settings and enters the host's namespace.
    ///
    /// # Errors
    /// Settings are broken, or the host cannot be entered.
    pub fn open() -> Result<Self> {
        let settings = Settings::read()?;
        let host = Arc::new(Host::open(&settings)?);
        Ok(Self {
            settings,
            ledger: Ledger::of(Arc::clone(&host)),
            place: place(),
            host,
        })
    }

    /// The claim of a recorded mount, wherever that was made.
    pub fn claim(&self, record: &Record) -> Claim {
        let claims = match &record.root {
            Some(root) if self.place != Place::Client(root.clone()) => {
                namespace::claims(&self.host, root)
            }
            _ => self.settings.claims(),
        };
        Claim::named(&claims, &record.id)
    }
}

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
    let asked = Asked::now(Operation::Mount);
    let (target, fs_type) = (request.target.clone(), request.fs_type.clone());
    let done = make(session, request, interrupts).map_err(|error| match doubt {
        Some(doubt) if error.class() == Class::Mount => error.hint_also(&doubt),
        _ => error,
    });
    match &done {
        Ok(Done::Already(_)) => {}
        Ok(Done::Mounted(made)) => {
            asked.tell(&session.host, made.target.as_ref(), &made.fs_type, &done);
        }
        Err(_) => asked.tell(&session.host, &target, &fs_type, &done),
    }
    done
}

fn make(session: &Session, request: Request, interrupts: &Interrupts) -> Result<Done> {
    let limit = Deadline::of(request.timeout);
    let deadline = limit.at();
    let mut plan = Plan::make(request, &session.host, &session.settings)?;
    if session.place == Place::Container && plan.outlives_the_container() {
        if container::shares(&session.settings, "pid") == Some(false) {
            tracing::warn!(
                "this mount ends with the container, which has processes of its own; started with --pid=host, it would not"
            );
        } else {
            enter::same_again(&session.host, &session.settings, &root::own()?)?;
        }
    }
    let secrets = &mut plan.request.secrets;
    secrets.read(&session.host, &session.settings, deadline, || {
        interrupts.check()
    })?;
    let _lock = session
        .ledger
        .lock(&plan.target, deadline, || interrupts.check())?;
    if let Some(record) = known(session, &plan.target)? {
        match settle(session, &record)? {
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
    let at = (&*session.host, &session.settings);
    let record = servers::mount(&mut plan, at, &limit, interrupts, |plan, share| {
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
    let dead = match look::states(session, std::slice::from_ref(&record))?[..] {
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
