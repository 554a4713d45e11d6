//! A new mount for one whose daemon died: made on a stand-in while the dead one stays, and put in its place when it answers.

pub mod binds;
pub mod replace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::client::enter;
use crate::error::{Error, Result, show};
use crate::helper::secret_fds::SecretFds;
use crate::host::confinement;
use crate::host::redirect::{Mode, Redirect};
use crate::host::runs_in::RunsIn;
use crate::host::target::{self, Rules};
use crate::kinds::model::MountMethod;
use crate::liveness::probe::{self, Health};
use crate::mount::deadline::Deadline;
use crate::mount::direct::Detached;
use crate::mount::helper_run::HelperRun;
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Request, failover};
use crate::options::repair_scope::RepairScope;
use crate::options::{Options, Secrets};
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::process::marks;
use crate::recovery::leftovers::{is_mount, unmount_placeholder, unseen};
use crate::recovery::records::known;
use crate::recovery::repairs::{adopt, finish};
use crate::repair::replace::{Dead, ReplaceMethod};
use crate::state::Session;
use crate::state::events::{Operation, OperationTimer};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};

/// Exit code of `spc repair` when there was nothing to repair.
pub const NOTHING: u8 = 3;

/// Shorter than other commands wait for the target.
const LIMIT: Duration = Duration::from_secs(25);

/// How long a helper that ended well may take until its mount is there.
const SETTLE: Duration = Duration::from_millis(500);

/// What there was to repair.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing: it is not mounted, or not to be repaired, or lives, or another command is at work on it.
    Nothing,
    /// A new mount took its place.
    Repaired,
}

/// Looks at a target, and repairs its mount if that is dead; where its programs are, if it has a client root.
///
/// # Errors
/// No new mount could be made; the dead one is there still.
pub fn repair(session: &Session, target: &Path, interrupts: &Interrupts) -> Result<Outcome> {
    let root = session.ledger.get(target)?.and_then(|record| record.root);
    if let Some(root) = root.filter(|root| session.runs_in != RunsIn::ClientRoot(root.clone())) {
        enter::same_again(&session.host, &root)?;
    }
    let soon = Instant::now() + Duration::from_millis(500);
    let Ok(_lock) = session.ledger.lock(target, interrupts.until(soon)) else {
        return Ok(Outcome::Nothing);
    };
    let Some(record) = known(session, target)? else {
        return Ok(Outcome::Nothing);
    };
    let extent = RepairScope::from_options(&Options::parse([record.options.as_str()])?)?;
    if extent == RepairScope::No || !is_dead(session, &record)? {
        return Ok(Outcome::Nothing);
    }
    let asked = OperationTimer::start(Operation::Repair);
    let fs_type = record.fs_type.clone();
    let done = renew(session, record, interrupts)
        .map_err(|error| error.hint_also("the mount stays dead; `spc umount -l` takes it away"));
    asked.report(&session.host, target, &fs_type, &done);
    let (dead, record) = done?;
    if extent == RepairScope::Containers {
        binds::replace(session, &dead, &record);
    }
    Ok(Outcome::Repaired)
}

/// Has a new mount take the place of a dead one. Both come back.
fn renew(session: &Session, record: Record, interrupts: &Interrupts) -> Result<(Dead, Record)> {
    let began = Instant::now();
    let limit = Deadline::new(Some(LIMIT));
    let mut plan = plan(session, &record, limit.at(), interrupts)?;
    let host = &*session.host;
    let made = failover::mount(&mut plan, host, &limit, interrupts, |plan, share| {
        Attempt::new(session, plan, record.clone())?.run(share.until(), interrupts)
    });
    let (dead, record, way) = made?;
    let (way, id, took) = (way.word(), record.mount_id, began.elapsed());
    tracing::info!(target = %record.target, mount = id, way, ?took, "its daemon was gone: repaired");
    Ok((dead, record))
}

/// Whether the daemon of a mount is gone. One that lives may say the same of its server, and will find it again.
fn is_dead(session: &Session, record: &Record) -> Result<bool> {
    if record.state != State::Mounted || record.repair.is_none() {
        return Ok(false);
    }
    let fuse = entry_of(session, record)?.is_some_and(|entry| entry.is_fuse());
    let answers = || marks::answers_fuse(&record.id).map_err(|e| unseen(record, e));
    Ok(fuse
        && !answers()?
        && probe::probe_all(session, std::slice::from_ref(record))? == [Health::Stale])
}

/// The same mount again, as it was asked for.
fn plan(
    session: &Session,
    record: &Record,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Plan> {
    let mut secrets = Secrets::default();
    for secret in record.repair.iter().flat_map(|again| &again.secrets) {
        let (key, from) = secret.split_once('=').unwrap_or_default();
        if !from.starts_with("file:") {
            return Err(Error::mount(format!("cannot repair {}", record.target))
                .because(format!(
                    "its secret {key} came from {from}, and is not kept"
                ))
                .hint(format!(
                    "mounted with --secret {key}=file:PATH, it can be repaired"
                )));
        }
        secrets.name(secret)?;
    }
    // Paths of the host may begin like the directory at which the container sees the host.
    let target = match session.host.settings().hosts().first() {
        Some(host) => host.join(record.target.trim_start_matches('/')),
        None => PathBuf::from(&record.target),
    };
    let request = Request {
        fs_type: record.fs_type.clone(),
        inferred: None,
        source: record.source.clone(),
        target,
        options: Options::parse([record.options.as_str()])?,
        secrets,
        timeout: Some(LIMIT),
        route: RouteChoice::Graft,
        over_system_directory: true,
        // The recorded path has no links, or it leads elsewhere now.
        no_symlink_tail: usize::MAX,
    };
    let copies = session.redirect(record).files();
    let host = &session.host;
    let mut plan = Plan::again(request.validated()?, host, Some(&copies))?;
    let secrets = &mut plan.request.secrets;
    secrets.read(host, interrupts.until(deadline))?;
    Ok(plan)
}

/// One try at a repair; what was made is put right when it is dropped before it is finished.
struct Attempt<'a> {
    session: &'a Session,
    plan: &'a Plan,
    dead: Dead,
    record: Record,
    finished: bool,
}

impl<'a> Attempt<'a> {
    fn new(session: &'a Session, plan: &'a Plan, mut record: Record) -> Result<Self> {
        let path = PathBuf::from(&record.target);
        let pin = move || {
            let rules = Rules {
                mkdir: None,
                system: true,
                no_symlink_tail: usize::MAX,
            };
            let (pinned, _) = target::pin(&path, rules)?;
            let entry = pinned.entry()?;
            Ok::<_, Error>((pinned, entry))
        };
        let (pinned, entry) = session.host.run("pinning the target", pin)??;
        let (true, Some(entry)) = (pinned.mount.is(record.mount_id, record.unique_id), entry)
        else {
            return Err(cannot(&record).because("another mount covers it"));
        };
        record.repair.get_or_insert_default().pending_id = Some(plan.id.clone());
        record.shows_source.clone_from(&plan.kind.expected_source);
        let attempt = Self {
            session,
            plan,
            dead: Dead {
                pinned: Arc::new(pinned),
                entry,
            },
            record,
            finished: false,
        };
        // Whoever finds this after a crash knows what to take away.
        session.ledger.put(&attempt.record)?;
        Ok(attempt)
    }

    fn run(
        mut self,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<(Dead, Record, ReplaceMethod)> {
        let redirect = Redirect::make(
            &self.session.host.settings().redirects(),
            &self.plan.id,
            Mode::Local,
            &self.dead.pinned,
        )?;
        let new = self.make(&redirect, deadline, interrupts)?;
        unmount_placeholder(redirect.placeholder())?;
        let (made, way) = replace::replace(self.session, &redirect, &self.dead.pinned, new)?;
        let record = adopt(self.session, self.record.clone(), made)?;
        self.finished = true;
        let dead = Dead {
            pinned: Arc::clone(&self.dead.pinned),
            entry: self.dead.entry.clone(),
        };
        Ok((dead, record, way))
    }

    /// Runs the helper on the stand-in. What it mounted has answered.
    fn make(
        &self,
        redirect: &Redirect,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Detached> {
        let (MountMethod::Helper(helper), Some(program)) =
            (&self.plan.kind.method, &self.plan.program)
        else {
            return Err(cannot(&self.record).because("no program mounts it any more"));
        };
        confinement::fuse()?;
        self.plan.option_files.copy()?;
        let secret_fds = SecretFds::prepare(&helper.secrets, &self.plan.request.secrets)?;
        let made_by = (helper, program);
        let run = HelperRun::new(self.plan, made_by, redirect, &secret_fds, &self.record);
        let said = run.run(deadline, interrupts, || ())?;
        let failed = |why: &str| run.annotate(cannot(&self.record).because(why), &said);
        let until = Instant::now() + SETTLE;
        while !is_mount(redirect.placeholder()) {
            if Instant::now() >= until {
                return Err(failed("its helper reported success, but mounted nothing"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let answer = answers(redirect.placeholder(), interrupts.until(deadline))?;
        if !answer || run.gave_up(&said) || !is_mount(redirect.placeholder()) {
            return Err(failed("what was mounted anew does not answer"));
        }
        Detached::clone_of(redirect.placeholder())
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = finish(self.session, self.record.clone())
        {
            tracing::error!("what a repair left could not be taken away: {error}");
        }
    }
}

fn cannot(record: &Record) -> Error {
    Error::mount(format!("cannot repair {}", show(record.target.as_ref())))
}

/// Whether a mount in our own namespace says a first word. A thread asks, which is left behind if it hangs.
fn answers(mount: &Path, cancel: CancelToken<'_>) -> Result<bool> {
    let (done, answer) = channel();
    let mount = mount.to_owned();
    let ask = move || {
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
        let seen = statx(CWD, &mount, flags, StatxFlags::BASIC_STATS);
        // Nobody listens any more if it took too long.
        let _ = done.send(seen.is_ok());
    };
    std::thread::Builder::new()
        .spawn(ask)
        .map_err(|e| Error::system("cannot start a thread").because(e))?;
    loop {
        match answer.recv_timeout(Duration::from_millis(20)) {
            Ok(answer) => return Ok(answer),
            Err(_) if !cancel.is_expired() => cancel.check()?,
            Err(_) => return Ok(false),
        }
    }
}
