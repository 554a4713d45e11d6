//! One try at a mount, from the intent in the ledger to the proof; what is not finished is undone.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode as FileMode, OFlags, openat};

use crate::block::attach::{AttachRequest, Attached};
use crate::block::filesystem::{FileSystemRequest, MKFS};
use crate::error::{Class, Error, Reason, Result, show};
use crate::helper::secret_fds::SecretFds;
use crate::helper::slot_limit::Limit;
use crate::helper::slots::{self, HelperSlot};
use crate::host::namespace::shares;
use crate::host::redirect::{Mode, Redirect};
use crate::host::runs_in::RunsIn;
use crate::host::target::{MountId, Pinned};
use crate::host::{confinement, modules, propagated};
use crate::kinds::block::AUTO;
use crate::kinds::model::MountMethod;
use crate::kinds::servers::first_of;
use crate::liveness::probe::{self, Health, PrestartedProbe, ProbeTarget};
use crate::liveness::waiter_lock;
use crate::log;
use crate::mount::direct::{self, Detached};
use crate::mount::failover::AttemptBudget;
use crate::mount::helper_run::{HelperOutput, HelperRun};
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Proof, proof};
use crate::process::interrupts::Interrupts;
use crate::recovery::leftovers::{is_mount, unmount_placeholder, unseen};
use crate::recovery::records::roll_back;
use crate::recovery::services;
use crate::state::presence::entry_of;
use crate::state::record::{OnDevice, Record, RepairInfo, State, boot, now};
use crate::state::{Route, Session};

/// How long a helper that ended well may take until its mount is there.
const SETTLE: Duration = Duration::from_millis(500);

/// One try at a mount; undone when dropped before it is finished.
pub(super) struct Attempt<'a> {
    session: &'a Session,
    plan: &'a Plan,
    pinned: Arc<Pinned>,
    record: Record,
    finished: bool,
    /// The target is an automount, which lets nobody past until the mount is there.
    waited_for: bool,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        session: &'a Session,
        plan: &'a Plan,
        pinned: Arc<Pinned>,
        waited_for: bool,
    ) -> Self {
        let id = plan.id.clone();
        let request = &plan.request;
        let on = pinned.mount.id;
        let record = Record {
            id,
            state: State::Mounting,
            target: plan.target.to_string_lossy().into_owned(),
            requested_target: plan.requested_target.to_string_lossy().into_owned(),
            fs_type: request.fs_type.clone(),
            source: request.source.clone(),
            shows: plan.kind.expected_types.clone(),
            shows_source: plan.kind.expected_source.clone(),
            options: request.options.to_string(),
            request: plan.fingerprint.clone(),
            route: plan.route,
            mount_id: 0,
            unique_id: 0,
            parent_mount_id: on,
            daemon: Vec::new(),
            root: match &session.runs_in {
                RunsIn::ClientRoot(root) => Some(root.clone()),
                RunsIn::Container | RunsIn::Host => None,
            },
            since: now(),
            request_id: log::request().unwrap_or_default().to_owned(),
            device: plan.kind.device.as_ref().map(|device| OnDevice {
                name: device.name.clone(),
                through: device.session_key.clone(),
            }),
            boot: boot().to_owned(),
            repair: None,
        };
        Self {
            session,
            plan,
            pinned,
            record,
            finished: false,
            waited_for,
        }
    }

    pub(super) fn run(
        mut self,
        share: AttemptBudget<'_>,
        interrupts: &Interrupts,
    ) -> Result<Record> {
        // First of all the intent: whoever finds it after a crash knows what to undo.
        self.session.ledger.put(&self.record)?;
        let host = &self.session.host;
        let lacks = modules::provide(&self.plan.kind.modules, host);
        interrupts.check()?;
        let turn = share.turn(|until| self.turn(until, interrupts))?;
        let proof = self.carry_out(share.until(), interrupts).map_err(|error| {
            match share.counts_turns() {
                true => turn.explain(modules::explain(error, &lacks)),
                false => modules::explain(error, &lacks),
            }
        })?;
        drop(turn);
        interrupts.check()?;
        // Only the container's table may have copies. The kernel makes them after what they are copies of.
        if self.session.runs_in == RunsIn::Container {
            propagated::drop_copies(&proof.entry, &proof.on, proof.mount.unique)?;
        }
        self.record.state = State::Mounted;
        self.note(proof.mount);
        self.session.ledger.put(&self.record)?;
        self.finished = true;
        Ok(self.record.clone())
    }

    /// Waits until it may run a helper; what the kernel makes alone needs no turn.
    fn turn(&self, deadline: Instant, interrupts: &Interrupts) -> Result<HelperSlot> {
        let Plan { request, kind, .. } = self.plan;
        let server = match (&kind.method, &kind.device) {
            (_, Some(device)) => Some(device.session_key.as_str()),
            (MountMethod::Helper(_), None) => first_of(&self.plan.source),
            _ => return Ok(HelperSlot::default()),
        };
        let host = &self.session.host;
        let limit = Limit::from_options(&request.options, host)?;
        slots::acquire(host, server, limit, interrupts.until(deadline))
    }

    /// Runs the helper, or has the kernel make the mount, and proves the result.
    fn carry_out(&mut self, deadline: Instant, interrupts: &Interrupts) -> Result<Proof> {
        if self.plan.kind.is_fuse() {
            confinement::fuse()?;
        }
        Ok(match (&self.plan.kind.method, &self.plan.program) {
            (MountMethod::Helper(helper), Some(program)) => {
                let mode = if self.plan.route == Route::Graft {
                    Mode::Local
                } else {
                    Mode::ToHost
                };
                let redirect = Redirect::make(
                    &self.session.host.settings().redirects(),
                    &self.record.id,
                    mode,
                    &self.pinned,
                )?;
                self.plan.option_files.copy()?;
                let secrets = &self.plan.request.secrets;
                let secret_fds = SecretFds::prepare(&helper.secrets, secrets)?;
                let run = HelperRun::new(
                    self.plan,
                    (helper, program),
                    &redirect,
                    &secret_fds,
                    &self.record,
                );
                // A FUSE mount is looked at, by a process that begins while the helper is at work.
                let (is_fuse, mut ahead) = (self.plan.kind.is_fuse(), None);
                let said = run
                    .run(deadline, interrupts, || {
                        ahead = is_fuse.then(|| probe::prestart(deadline).ok()).flatten();
                    })
                    .map_err(|error| self.hint_at_network(error))?;
                let proof = self
                    .land(&redirect, &program.path)
                    .map_err(|error| run.annotate(error, &said))?;
                if proof.entry.is_fuse() {
                    let (mount, said) = (proof.mount, &said);
                    self.answers((&run, said), mount, ahead, deadline, interrupts)?;
                    let origins = secrets.origins();
                    self.record.repair = Some(RepairInfo {
                        secrets: origins.map(|(key, from)| format!("{key}={from}")).collect(),
                        ..RepairInfo::default()
                    });
                }
                let daemon = run.daemon(&said);
                self.record.daemon = daemon.map_err(|e| unseen(&self.record, e))?;
                proof
            }
            _ => {
                let attached = self.device(deadline, interrupts)?;
                let (kind, request) = (self.plan.kind.clone(), &self.plan.request);
                let mut options = request.options.for_file_system();
                let (mut fs_type, mut source) = (request.fs_type.clone(), request.source.clone());
                if let (Some((disk, found)), Some(device)) = (&attached, &kind.device) {
                    options = options.without(device.options);
                    source = disk.disk.node.to_string_lossy().into_owned();
                    fs_type = found.clone();
                    self.record.fs_type.clone_from(found);
                }
                let make = move || direct::make(&kind, &fs_type, &source, &options);
                // A file system may have a journal to replay.
                let limit = deadline
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_secs(20));
                let detached = self.session.host.run_within("mounting", limit, make)??;
                self.attach(detached)?
                    .ok_or_else(|| self.nothing("the kernel"))?
            }
        })
    }

    /// Attaches the device, where the kind has one, and finds out what is on it.
    fn device(
        &self,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Option<(Attached, String)>> {
        let Some(device) = &self.plan.kind.device else {
            return Ok(None);
        };
        let request = &self.plan.request;
        let attaching = AttachRequest {
            session: self.session,
            device,
            record: &self.record,
            host_name: request.options.value("initiator"),
            secrets: &request.secrets,
            deadline,
            interrupts,
        };
        let attached = attaching.run()?;
        let asked = request.fs_type.as_str();
        let preparing = FileSystemRequest {
            host: &self.session.host,
            name: &device.name,
            disk: &attached.disk,
            fs_type: Some(asked).filter(|asked| *asked != AUTO),
            read_only: request.options.read_only(),
            mkfs: request.options.has(MKFS),
            id: &self.record.id,
            deadline,
            interrupts,
        };
        let found = preparing.run()?;
        Ok(Some((attached, found)))
    }

    /// The helper ended well: where is its mount? On the host, where the shim put it, or on the
    /// stand-in, from where it is grafted.
    fn land(&mut self, redirect: &Redirect, program: &Path) -> Result<Proof> {
        let until = Instant::now() + SETTLE;
        loop {
            // Without the shim's note it is somebody else's mount, or one that was not finished.
            if let Some(made) = redirect.mounted()
                && let Some(proof) = self.look(Some(made))?
            {
                return Ok(proof);
            }
            if is_mount(redirect.placeholder()) {
                if self.plan.request.route == RouteChoice::Preload {
                    return Err(Error::mount(format!(
                        "{} mounted in the container, past the shim",
                        program.display()
                    ))
                    .hint("leave out --route preload, and the mount will be moved to the host"));
                }
                self.record.route = Route::Graft;
                let detached = Detached::clone_of(redirect.placeholder())?;
                let proof = self.attach(detached)?;
                unmount_placeholder(redirect.placeholder())?;
                return proof.ok_or_else(|| self.nothing("the helper"));
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

    /// A FUSE mount is there before its daemon has said a word to the kernel; many ask their server only
    /// then. So it has to answer once, and to be there still when it did.
    fn answers(
        &self,
        (run, said): (&HelperRun<'_>, &HelperOutput),
        mount: MountId,
        ahead: Option<PrestartedProbe>,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<()> {
        let made = Record {
            mount_id: mount.id,
            unique_id: mount.unique,
            ..self.record.clone()
        };
        let (target, _held) = self.looked_at()?;
        let looked = ProbeTarget {
            target: target.into(),
            mount: waiter_lock::key(mount),
        };
        let health = probe::probe(&looked, ahead, interrupts.until(deadline))?;
        let (cause, reason) = match health {
            Health::Hung => ("what it mounted does not answer", Reason::NoAnswer),
            Health::Ok if !run.gave_up(said) && entry_of(self.session, &made)?.is_some() => {
                return Ok(());
            }
            _ => ("it ended when it had mounted", Reason::Helper),
        };
        let failed = Error::mount(format!("{} failed", run.program.display()))
            .because(cause)
            .reason_is(reason);
        Err(self.hint_at_network(run.annotate(failed, said)))
    }

    /// The path by which another process looks at the new mount, and what it leads through.
    fn looked_at(&self) -> Result<(String, Option<OwnedFd>)> {
        if !self.waited_for {
            return Ok((self.record.target.clone(), None));
        }
        let pinned = Arc::clone(&self.pinned);
        let opened = self.session.host.run("opening the mount", move || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&pinned.parent, &pinned.name, flags, FileMode::empty())
        })?;
        let opened = opened.map_err(|e| Error::mount("cannot open the new mount").because(e))?;
        let path = format!("/proc/{}/fd/{}/.", std::process::id(), opened.as_raw_fd());
        Ok((path, Some(opened)))
    }

    fn look(&self, made: Option<(u64, u64)>) -> Result<Option<Proof>> {
        let (pinned, shows) = (
            Arc::clone(&self.pinned),
            self.plan.kind.expected_types.clone(),
        );
        self.session.host.run("proving the mount", move || {
            proof::look(&pinned, &shows, made)
        })?
    }

    /// Attaches a finished mount, whose id is in the ledger before it can be seen, and looks for it where it should be.
    fn attach(&mut self, detached: Detached) -> Result<Option<Proof>> {
        self.note(detached.mount);
        let (pinned, shows) = (
            Arc::clone(&self.pinned),
            self.plan.kind.expected_types.clone(),
        );
        let attach = move || {
            detached.attach(&pinned)?;
            proof::look(&pinned, &shows, None)
        };
        self.session.ledger.put_and(&self.record, attach)?
    }

    fn note(&mut self, mount: MountId) {
        self.record.mount_id = mount.id;
        self.record.unique_id = mount.unique;
    }

    fn hint_at_network(&self, error: Error) -> Error {
        let own = shares(self.session.host.settings(), "net") == Some(false);
        let network = "the container has a network of its own, which may not reach the server: start it with --net=host";
        if own && error.class() == Class::Mount {
            return error.hint_also(network);
        }
        error.hint_if_none(
            "`spc explain` shows how it is run; with -v the shim's decisions are shown as well",
        )
    }

    fn nothing(&self, who: &str) -> Error {
        Error::mount(format!(
            "{who} reported success, but nothing is mounted on {}",
            show(&self.plan.target)
        ))
        .reason_is(Reason::NoProof)
        .hint("run it again with -v; `spc doctor` checks the container")
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished {
            if let Err(error) = roll_back(self.session, &self.record) {
                tracing::error!("what was half made could not be undone: {error}");
            }
            services::release(self.session);
        }
    }
}
