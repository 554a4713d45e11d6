//! Repairs a mount whose daemon died.
//!
//! The helper mounts on a placeholder directory while the dead mount stays. Once the new mount
//! responds, spc replaces the dead one by it.

pub mod binds;
mod recorded_binds;
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
use crate::liveness::health::Health;
use crate::liveness::probe;
use crate::mount::deadline::Deadline;
use crate::mount::detached::Detached;
use crate::mount::helper_run::HelperRun;
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Request, failover};
use crate::options::repair_scope::RepairScope;
use crate::options::{Options, Secrets};
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::process::marks;
use crate::recovery::leftovers::{cannot_search, is_mount, unmount_placeholder};
use crate::recovery::records::load_record;
use crate::recovery::repairs::{adopt, finish};
use crate::repair::recorded_binds::RecordedBinds;
use crate::repair::replace::{DeadMount, ReplaceMethod};
use crate::state::Session;
use crate::state::events::{Operation, OperationTimer};
use crate::state::presence::entry_of;
use crate::state::record::{Record, State};

/// Exit code of `spc repair` if there was nothing to repair.
pub const NOTHING: u8 = 3;

/// Time limit of a repair. Other commands wait longer than this for the lock of the target.
const LIMIT: Duration = Duration::from_secs(25);

/// Time for the mount to appear after its helper reported success.
const MOUNT_APPEARS_LIMIT: Duration = Duration::from_millis(500);

/// Outcome of a repair.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was repaired: the target is not mounted, its repair is off, its daemon is alive, or
    /// another command is using it.
    Nothing,
    /// A new mount has replaced the dead one.
    Repaired,
}

/// Repairs the mount on a target if the mount is dead. Continues in the client root file system
/// that has the mount's programs, if any.
///
/// # Errors
/// Fails if no new mount could be made; the dead mount stays.
pub fn repair(session: &Session, target: &Path, interrupts: &Interrupts) -> Result<Outcome> {
    let root = session.ledger.get(target)?.and_then(|record| record.root);
    if let Some(root) = root.filter(|root| session.runs_in != RunsIn::ClientRoot(root.clone())) {
        enter::exec_in_client_root(&session.host, &root)?;
    }
    let lock_deadline = Instant::now() + Duration::from_millis(500);
    let Ok(_lock) = session.ledger.lock(target, interrupts.until(lock_deadline)) else {
        return Ok(Outcome::Nothing);
    };
    let Some(record) = load_record(session, target)? else {
        return Ok(Outcome::Nothing);
    };
    let scope = RepairScope::from_options(&Options::parse([record.options.as_str()])?)?;
    if scope == RepairScope::No || !is_dead(session, &record)? {
        return Ok(Outcome::Nothing);
    }
    let timer = OperationTimer::start(Operation::Repair);
    let fs_type = record.fs_type.clone();
    let done = replace_dead(session, record, interrupts)
        .map_err(|error| error.hint_also("the mount stays dead; `spc umount -l` removes it"));
    timer.report(&session.host, target, &fs_type, &done);
    let (dead, record) = done?;
    if scope == RepairScope::Containers {
        let recorded = RecordedBinds::lock(session, target)?;
        binds::replace(session, &dead, &record);
        recorded.follow(session, &record);
    }
    Ok(Outcome::Repaired)
}

/// Replaces a dead mount by a new one. Returns both.
fn replace_dead(
    session: &Session,
    record: Record,
    interrupts: &Interrupts,
) -> Result<(DeadMount, Record)> {
    let started = Instant::now();
    let limit = Deadline::new(Some(LIMIT));
    let mut plan = plan(session, &record, limit.at(), interrupts)?;
    let host = &*session.host;
    let replaced = failover::mount(&mut plan, host, &limit, interrupts, |plan, share| {
        Attempt::new(session, plan, record.clone())?.run(share.start_helper(), interrupts)
    });
    let (dead, record, method) = replaced?;
    let (method, id, took) = (method.word(), record.mount_id, started.elapsed());
    tracing::info!(target = %record.target, mount = id, way = method, ?took, "its daemon was gone: repaired");
    Ok((dead, record))
}

/// Returns whether the daemon of a mount is gone. A mount whose server is gone looks the same but
/// has a living daemon, which reconnects.
fn is_dead(session: &Session, record: &Record) -> Result<bool> {
    if record.state != State::Mounted || record.repair.is_none() {
        return Ok(false);
    }
    let is_fuse = entry_of(session, record)?.is_some_and(|entry| entry.is_fuse());
    let has_daemon = || marks::holds_fuse_device(&record.id).map_err(|e| cannot_search(record, e));
    Ok(is_fuse
        && !has_daemon()?
        && probe::probe_all(session, std::slice::from_ref(record))? == [Health::Stale])
}

/// Plans the same mount again, from the record.
fn plan(
    session: &Session,
    record: &Record,
    deadline: Instant,
    interrupts: &Interrupts,
) -> Result<Plan> {
    let mut secrets = Secrets::default();
    for secret in record.repair.iter().flat_map(|repair| &repair.secrets) {
        let (key, from) = secret.split_once('=').unwrap_or_default();
        if !from.starts_with("file:") {
            return Err(Error::mount(format!("cannot repair {}", record.target))
                .because(format!(
                    "its secret {key} came from {from}, and is not kept"
                ))
                .hint(format!(
                    "mount it with --secret {key}=file:PATH, and spc can repair it"
                )));
        }
        secrets.add_reference(secret)?;
    }
    // An absolute path of the host can look like a path below the container's view of the host, so
    // the prefix is added explicitly.
    let target = match session.host.settings().hosts().first() {
        Some(host) => host.join(record.target.trim_start_matches('/')),
        None => PathBuf::from(&record.target),
    };
    let request = Request {
        options: Options::parse([record.options.as_str()])?,
        secrets,
        timeout: Some(LIMIT),
        route: RouteChoice::Graft,
        over_system_directory: true,
        // The recorded path has no symlinks. A symlink on it now leads elsewhere.
        no_symlink_tail: usize::MAX,
        sandboxed: record.sandboxed,
        ..Request::new(record.fs_type.as_str(), record.source.as_str(), target)
    };
    let copies = session.redirect(record).files();
    let host = &session.host;
    let mut plan = Plan::for_repair(request.validated()?, host, &copies)?;
    let secrets = &mut plan.request.secrets;
    secrets.read(host, interrupts.until(deadline))?;
    Ok(plan)
}

/// Attempt at a repair. Dropping an unfinished attempt finishes it or rolls it back.
struct Attempt<'a> {
    session: &'a Session,
    plan: &'a Plan,
    dead: DeadMount,
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
        let (true, Some(entry)) = (
            pinned.mount.matches(record.mount_id, record.unique_id),
            entry,
        ) else {
            return Err(cannot(&record).because("another mount covers it"));
        };
        record.repair.get_or_insert_default().pending_id = Some(plan.id.clone());
        record
            .expected_source
            .clone_from(&plan.kind.expected_source);
        let attempt = Self {
            session,
            plan,
            dead: DeadMount {
                pinned: Arc::new(pinned),
                entry,
            },
            record,
            finished: false,
        };
        // After a crash, the record tells the next command what to clean up.
        session.ledger.put(&attempt.record)?;
        Ok(attempt)
    }

    fn run(
        mut self,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<(DeadMount, Record, ReplaceMethod)> {
        let redirect = Redirect::create(
            &self.session.host.settings().redirects(),
            &self.plan.id,
            Mode::Local,
            &self.dead.pinned,
        )?;
        let new = self.mount_new(&redirect, deadline, interrupts)?;
        unmount_placeholder(redirect.placeholder())?;
        let (new_id, method) = replace::replace(self.session, &redirect, &self.dead.pinned, new)?;
        let record = adopt(self.session, self.record.clone(), new_id)?;
        self.finished = true;
        let dead = DeadMount {
            pinned: Arc::clone(&self.dead.pinned),
            entry: self.dead.entry.clone(),
        };
        Ok((dead, record, method))
    }

    /// Runs the helper on the placeholder directory. Returns its mount once that has responded.
    fn mount_new(
        &self,
        redirect: &Redirect,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Detached> {
        let (MountMethod::Helper(helper), Some(program)) =
            (&self.plan.kind.method, &self.plan.program)
        else {
            return Err(
                cannot(&self.record).because("no program for its type is installed any more")
            );
        };
        confinement::check_fuse()?;
        self.plan.option_files.copy()?;
        let secret_fds = SecretFds::prepare(&helper.secrets, &self.plan.request.secrets)?;
        let record = &self.record;
        let run = HelperRun::new(self.plan, helper, program, redirect, &secret_fds, record);
        let output = run.run(deadline, interrupts, || ())?;
        let failed = |why: &str| run.annotate(cannot(&self.record).because(why), &output);
        let appear_deadline = Instant::now() + MOUNT_APPEARS_LIMIT;
        while !is_mount(redirect.placeholder()) {
            if Instant::now() >= appear_deadline {
                return Err(failed("the helper reported success, but mounted nothing"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let responds = responds(redirect.placeholder(), interrupts.until(deadline))?;
        if !responds || run.gave_up(&output) || !is_mount(redirect.placeholder()) {
            return Err(failed("the new mount does not respond"));
        }
        let limit = deadline.saturating_duration_since(Instant::now());
        Detached::clone_of(redirect.placeholder())?.adjusted_on(
            &self.session.host,
            &self.plan.adjustments,
            limit,
        )
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = finish(self.session, self.record.clone())
        {
            tracing::error!("cannot clean up after a failed repair: {error}");
        }
    }
}

fn cannot(record: &Record) -> Error {
    Error::mount(format!("cannot repair {}", show(record.target.as_ref())))
}

/// Returns whether a mount in spc's own namespace responds. The probe runs on a thread that is left
/// behind if it hangs.
fn responds(mount: &Path, cancel: CancelToken<'_>) -> Result<bool> {
    let (sender, receiver) = channel();
    let mount = mount.to_owned();
    let probe = move || {
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
        let result = statx(CWD, &mount, flags, StatxFlags::BASIC_STATS);
        // The receiver is gone after the deadline.
        let _ = sender.send(result.is_ok());
    };
    std::thread::Builder::new()
        .spawn(probe)
        .map_err(|e| Error::system("cannot start a thread").because(e))?;
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(responds) => return Ok(responds),
            Err(_) if !cancel.is_expired() => cancel.check()?,
            Err(_) => return Ok(false),
        }
    }
}
