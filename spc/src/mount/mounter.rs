//! Request to Record: the one way a mount is made, whichever door the request came through.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode as Permissions, OFlags, open};
use rustix::mount::{UnmountFlags, unmount};

use super::direct::{self, Detached};
use super::ledger::{Lock, Record, State, now};
use super::plan::Route;
use super::proof;
use super::request::RouteChoice;
use super::run::{Interrupts, Run};
use super::{Ledger, Plan, Proof, Request};
use crate::error::{Class, Error, Result, errno_text};
use crate::host::claim::{Claim, Mode};
use crate::host::mountinfo::{self, Entry};
use crate::host::target::{self, MountId, Pinned, mount_id, show};
use crate::host::{Host, Settings, container, copies, process};
use crate::kinds::Maker;

/// How long a helper that ended well may take until its mount is there.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a daemon may take to end by itself once its mount is gone.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What every command works with.
pub struct Session {
    /// Settings of shim and launcher.
    pub settings: Settings,
    /// The host's namespace, entered.
    pub host: Arc<Host>,
    /// The host's ledger.
    pub ledger: Ledger,
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
            host,
        })
    }

    fn claim(&self, id: &str) -> Claim {
        Claim::named(&self.settings.claims(), id)
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
    let deadline = Instant::now() + request.timeout;
    let plan = Plan::make(request, &session.host, &session.settings)?;
    let lock = session.ledger.lock(&plan.target, deadline)?;
    if let Some(record) = session.ledger.get(&plan.target)? {
        match settle(session, &record)? {
            Some(entry) if record.request == plan.request.fingerprint() => {
                tracing::debug!(mount = entry.id, "already mounted");
                return Ok(Done::Already(record));
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
    if pinned.mount.is_root {
        let seen = Arc::clone(&pinned);
        return Err(
            match session
                .host
                .run("looking at the target", move || seen.entry())??
            {
                Some(entry) => occupied(&plan.target, &entry),
                None => Error::mount(format!("{} is already a mount point", show(&plan.target))),
            },
        );
    }
    let mut attempt = Attempt::new(session, &plan, pinned, lock);
    let record = attempt.run(deadline, interrupts)?;
    made.keep();
    Ok(Done::Mounted(record))
}

fn occupied(target: &Path, entry: &Entry) -> Error {
    Error::mount(format!(
        "{} is already mounted: {} ({})",
        show(target),
        entry.source,
        entry.fs_type
    ))
    .hint("unmount it first, or choose another target")
}

/// One try at a mount; undone when dropped before it is finished.
struct Attempt<'a> {
    session: &'a Session,
    plan: &'a Plan,
    pinned: Arc<Pinned>,
    record: Record,
    finished: bool,
    _lock: Lock,
}

impl<'a> Attempt<'a> {
    fn new(session: &'a Session, plan: &'a Plan, pinned: Arc<Pinned>, lock: Lock) -> Self {
        let request = &plan.request;
        let on = pinned.mount.id;
        let record = Record {
            id: new_id(),
            state: State::Mounting,
            target: plan.target.to_string_lossy().into_owned(),
            written: plan.written.to_string_lossy().into_owned(),
            fs_type: request.fs_type.clone(),
            source: request.source.clone(),
            options: request.options.to_string(),
            request: request.fingerprint(),
            route: plan.route,
            mount_id: 0,
            unique_id: 0,
            on,
            daemon: Vec::new(),
            since: now(),
        };
        Self {
            session,
            plan,
            pinned,
            record,
            finished: false,
            _lock: lock,
        }
    }

    fn run(&mut self, deadline: Instant, interrupts: &Interrupts) -> Result<Record> {
        // First of all the intent: whoever finds it after a crash knows what to undo.
        self.session.ledger.put(&self.record)?;
        let proof = match (&self.plan.chosen.maker, &self.plan.program) {
            (Maker::Helper(helper), Some(program)) => {
                let mode = if self.plan.route == Route::Graft {
                    Mode::Stay
                } else {
                    Mode::Carry
                };
                let claim = Claim::make(
                    &self.session.settings.claims(),
                    &self.record.id,
                    mode,
                    &self.pinned,
                )?;
                let run = Run {
                    program: &program.path,
                    argv: self.plan.argv(&claim.stand_in().to_string_lossy()),
                    claim: &claim,
                    id: &self.record.id,
                    log: helper.log.as_ref().map(PathBuf::from),
                    telling: self.plan.chosen.telling,
                    target: &self.plan.target,
                };
                run.to_end(deadline, interrupts)
                    .map_err(|error| self.hint_at_network(error))?;
                let proof = self.land(&claim, &program.path)?;
                self.record.daemon = process::marked(&self.record.id);
                proof
            }
            _ => {
                let (chosen, request) = (self.plan.chosen.clone(), self.plan.request.clone());
                let options = request.options.for_file_system();
                let make =
                    move || direct::make(&chosen, &request.fs_type, &request.source, &options);
                let detached = self.session.host.run("mounting", make)??;
                self.attach(detached)?;
                self.look(None)?.ok_or_else(|| self.nothing("the kernel"))?
            }
        };
        interrupts.check()?;
        copies::drop_copies(&proof.entry, &proof.on)?;
        self.record.state = State::Mounted;
        self.note(proof.mount);
        self.session.ledger.put(&self.record)?;
        self.finished = true;
        Ok(self.record.clone())
    }

    /// The helper ended well: where is its mount? On the host, where the shim put it, or on the
    /// stand-in, from where it is grafted.
    fn land(&mut self, claim: &Claim, program: &Path) -> Result<Proof> {
        let until = Instant::now() + SETTLE;
        loop {
            // Without the shim's note it is somebody else's mount, or one that was not finished.
            if let Some(made) = claim.mounted()
                && let Some(proof) = self.look(Some(made))?
            {
                return Ok(proof);
            }
            if is_mount(claim.stand_in()) {
                if self.plan.request.route == RouteChoice::Preload {
                    return Err(Error::mount(format!(
                        "{} mounted in the container, past the shim",
                        program.display()
                    ))
                    .hint("leave out --route preload, and the mount will be moved to the host"));
                }
                self.record.route = Route::Graft;
                let detached = Detached::clone_of(claim.stand_in())?;
                self.attach(detached)?;
                leave_stand_in(claim.stand_in())?;
                return self.look(None)?.ok_or_else(|| self.nothing("the helper"));
            }
            if Instant::now() >= until {
                let who = program.display().to_string();
                if self.pinned.top().is_ok_and(|top| top != self.pinned.mount) {
                    return Err(Error::mount(format!(
                        "{who} reported success, but what is on {} is not a mount that it finished",
                        show(&self.plan.target)
                    ))
                    .hint(
                        "one of its processes was killed, perhaps for want of memory; see dmesg",
                    ));
                }
                return Err(self.nothing(&who));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn look(&self, made: Option<(u64, u64)>) -> Result<Option<Proof>> {
        let (pinned, shows) = (Arc::clone(&self.pinned), self.plan.chosen.shows.clone());
        self.session.host.run("proving the mount", move || {
            proof::look(&pinned, &shows, made)
        })?
    }

    /// Attaches a finished mount, whose id is in the ledger before it can be seen.
    fn attach(&mut self, detached: Detached) -> Result<()> {
        self.note(detached.mount);
        self.session.ledger.put(&self.record)?;
        let pinned = Arc::clone(&self.pinned);
        self.session
            .host
            .run("attaching the mount", move || detached.attach(&pinned))?
    }

    fn note(&mut self, mount: MountId) {
        self.record.mount_id = mount.id;
        self.record.unique_id = mount.unique;
    }

    fn hint_at_network(&self, error: Error) -> Error {
        let own = container::shares_network(&self.session.settings) == Some(false);
        let network = "the container has a network of its own, which may not reach the server: start it with --net=host";
        match error.hint_text() {
            Some(hint) if own && error.class() == Class::Mount => {
                let hint = format!("{hint}; {network}");
                error.hint(hint)
            }
            None if own && error.class() == Class::Mount => error.hint(network),
            _ => error.hint_if_none(
                "`spc explain` shows how it is run; with -v the shim's decisions are shown as well",
            ),
        }
    }

    fn nothing(&self, who: &str) -> Error {
        Error::mount(format!(
            "{who} reported success, but nothing is mounted on {}",
            show(&self.plan.target)
        ))
        .hint("run it again with -v; `spc doctor` checks the container")
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = undo(self.session, &self.record)
        {
            tracing::error!("what was half made could not be undone: {error}");
        }
    }
}

/// What a record is worth: the entry of its mount if that is there; otherwise what was left of it
/// is cleared away. Needs the target's lock, so nobody is at work on it.
///
/// # Errors
/// The rest cannot be cleared away.
pub fn settle(session: &Session, record: &Record) -> Result<Option<Entry>> {
    tracing::debug!(target = %record.target, state = ?record.state, "a record is there");
    if record.state == State::Mounting {
        undo(session, record)?;
        return Ok(None);
    }
    let entry = entry_of(session, record)?;
    match (&entry, record.state) {
        (None, State::Unmounting) => {
            let left = process::end(&record.id, PATIENCE);
            forget(session, record, &session.claim(&record.id), left)?;
        }
        // Its daemon is left alone: after `umount -l` somebody may still use the mount.
        (None, _) => forget(session, record, &session.claim(&record.id), Vec::new())?,
        // Whoever was to take it away died before that: it is a mount like any other.
        (Some(_), State::Unmounting) => {
            let mut record = record.clone();
            record.state = State::Mounted;
            session.ledger.put(&record)?;
        }
        (Some(_), _) => {}
    }
    Ok(entry)
}

/// The host's entry of a recorded mount, if that mount still exists.
///
/// # Errors
/// The mount table cannot be read.
pub fn entry_of(session: &Session, record: &Record) -> Result<Option<Entry>> {
    let (id, unique, target) = (
        record.mount_id,
        record.unique_id,
        PathBuf::from(&record.target),
    );
    let look = move || -> std::io::Result<Option<Entry>> {
        for _ in 0..direct::LOOKS {
            let Some(entry) = mountinfo::find(id)? else {
                return Ok(None);
            };
            // Where it is now: directories on the way may have been renamed.
            let top = open(
                entry.target.parent().unwrap_or(Path::new("/")),
                OFlags::PATH | OFlags::CLOEXEC,
                Permissions::empty(),
            )
            .and_then(|parent| mount_id(&parent, entry.target.file_name().unwrap_or_default()));
            match top {
                // The plain id may have been given to another mount since.
                Ok(top) if top.id == id => {
                    let same = match unique != 0 && top.unique != 0 {
                        true => top.unique == unique,
                        false => entry.target == target,
                    };
                    return Ok(same.then_some(entry));
                }
                // Covered by another mount; the path tells as much as can be told.
                _ if entry.target == target => return Ok(Some(entry)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        // Renamed all the time, so it is there.
        mountinfo::find(id)
    };
    session
        .host
        .run("looking at a mount", look)?
        .map_err(|e| Error::system("cannot read the host's mount table").because(errno_text(e)))
}

/// Takes away everything a record stands for: mount, processes, claim, record, in that order.
///
/// # Errors
/// A mount cannot be detached, or a process does not end.
pub fn undo(session: &Session, record: &Record) -> Result<()> {
    let claim = session.claim(&record.id);
    // A helper still at work could mount after we looked.
    let left = process::end(&record.id, Duration::ZERO);
    let mut ids = claim
        .mounted()
        .or((record.mount_id != 0).then_some((record.mount_id, record.unique_id)));
    if ids.is_none() && record.route == Route::Preload {
        let seen = record.clone();
        ids = session
            .host
            .run("looking at the target", move || unnoted(&seen))?;
    }
    if let Some((id, unique)) = ids {
        let target = PathBuf::from(&record.target);
        let detach = move || direct::detach(&target, id, unique, UnmountFlags::DETACH);
        session.host.run("unmounting", detach)?.map_err(|e| {
            Error::mount(format!("cannot unmount {}", record.target)).because(errno_text(e))
        })?;
        let mounted = Record {
            mount_id: id,
            unique_id: unique,
            ..record.clone()
        };
        if entry_of(session, &mounted)?.is_some() {
            return Err(Error::mount(format!("cannot unmount {}", record.target))
                .because("another mount covers it, or its path is changed all the time"));
        }
    }
    forget(session, record, &claim, left)
}

/// The mount of a helper that was killed when the shim had carried its call, but had not yet noted the
/// id, or whose claim went with its container. Nothing was on the target before; what is there now,
/// and shows the source of the record, is that mount.
fn unnoted(record: &Record) -> Option<(u64, u64)> {
    let target = Path::new(&record.target);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let parent = open(target.parent()?, flags, Permissions::empty()).ok()?;
    let top = mount_id(&parent, target.file_name()?).ok()?;
    let entry = mountinfo::find(top.id).ok()??;
    let ours = entry.parent == record.on && entry.target == target && entry.source == record.source;
    (top.is_root && ours).then_some((top.id, top.unique))
}

/// The mount is gone: clears away its stand-in, claim and record.
///
/// # Errors
/// A process is left, or the record cannot be removed.
pub fn forget(session: &Session, record: &Record, claim: &Claim, left: Vec<i32>) -> Result<()> {
    if is_mount(claim.stand_in()) {
        leave_stand_in(claim.stand_in())?;
    }
    if !left.is_empty() {
        return Err(Error::system(format!(
            "processes of {} do not end: {left:?}",
            record.target
        ))
        .hint("they wait in the kernel, probably for a dead server; try again when it is back"));
    }
    claim.remove();
    session.ledger.remove(Path::new(&record.target))
}

fn is_mount(stand_in: &Path) -> bool {
    mount_id(CWD, stand_in.as_os_str()).is_ok_and(|mount| mount.is_root)
}

fn leave_stand_in(stand_in: &Path) -> Result<()> {
    unmount(stand_in, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| {
        Error::system(format!(
            "cannot unmount the stand-in {}",
            stand_in.display()
        ))
        .because(errno_text(e))
    })
}

/// 64 random bits in hex.
fn new_id() -> String {
    let mut bytes = [0_u8; 8];
    // A short read cannot happen for 8 bytes (getrandom(2)).
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:016x}", u64::from_ne_bytes(bytes))
}
