//! Attempt at a mount, from the record in the ledger to the proof. A failed attempt is rolled back.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode as FileMode, OFlags, openat};

use crate::block::attach::{AttachRequest, Attached};
use crate::block::filesystem::{FileSystemRequest, MKFS};
use crate::error::{Class, Error, Reason, Result, show};
use crate::helper::program::Program;
use crate::helper::secret_fds::SecretFds;
use crate::helper::slot_limit::SlotLimit;
use crate::helper::slots::{self, HelperSlot};
use crate::host::mount_id::MountId;
use crate::host::namespace::shares_namespace;
use crate::host::redirect::{Mode, Redirect};
use crate::host::runs_in::RunsIn;
use crate::host::target::Pinned;
use crate::host::{confinement, modules, propagated};
use crate::kinds::block::AUTO;
use crate::kinds::model::{Helper, MountMethod};
use crate::kinds::servers::first_server;
use crate::liveness::health::Health;
use crate::liveness::probe::{self, PrestartedProbe, ProbeTarget};
use crate::liveness::waiter_lock;
use crate::log;
use crate::mount::detached::Detached;
use crate::mount::direct;
use crate::mount::failover::AttemptBudget;
use crate::mount::helper_run::{HelperOutput, HelperRun};
use crate::mount::helper_view::with_own_mount;
use crate::mount::request::RouteChoice;
use crate::mount::{Plan, Proof, proof};
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::recovery::leftovers::{cannot_search, is_mount, unmount_placeholder};
use crate::recovery::records::roll_back;
use crate::recovery::services;
use crate::state::presence::entry_of;
use crate::state::record::{OnDevice, Record, RepairInfo, State, boot, now};
use crate::state::{Route, Session};

/// Time for the mount to appear after its helper has exited successfully.
const APPEAR_LIMIT: Duration = Duration::from_millis(500);

/// Time limit for a helper that has the kernel contact an NFS or SMB server of a pod. Until the
/// server answers, the kernel makes no other mount of NFS version 4 or of SMB on the node.
const POD_KERNEL_LIMIT: Duration = Duration::from_secs(15);

/// Attempt at a mount, rolled back when it is dropped unfinished.
pub(super) struct Attempt<'a> {
    session: &'a Session,
    plan: &'a Plan,
    pinned: Arc<Pinned>,
    record: Record,
    finished: bool,
    /// The target is an automount point, which blocks other processes until the mount is there.
    on_automount: bool,
}

/// Attached device with a file system.
struct PreparedDevice {
    attached: Attached,
    fs_type: String,
}

/// Path by which another process probes a mount.
struct ProbePath {
    path: PathBuf,
    /// Descriptor that the path leads through.
    _fd: Option<OwnedFd>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        session: &'a Session,
        plan: &'a Plan,
        pinned: Arc<Pinned>,
        on_automount: bool,
    ) -> Self {
        let id = plan.id.clone();
        let request = &plan.request;
        let record = Record {
            id,
            state: State::Mounting,
            target: plan.target.to_string_lossy().into_owned(),
            requested_target: plan.requested_target.to_string_lossy().into_owned(),
            fs_type: request.fs_type.clone(),
            source: request.source.clone(),
            expected_types: plan.kind.expected_types.clone(),
            expected_source: plan.kind.expected_source.clone(),
            options: request.options.to_string(),
            request: plan.fingerprint.clone(),
            route: plan.route,
            mount_id: 0,
            unique_id: 0,
            parent_mount_id: pinned.mount.id,
            daemon: Vec::new(),
            root: match &session.runs_in {
                RunsIn::ClientRoot(root) => Some(root.clone()),
                RunsIn::Container | RunsIn::Host => None,
            },
            since: now(),
            request_id: log::request().unwrap_or_default().to_owned(),
            device: plan.kind.device.as_ref().map(|device| OnDevice {
                name: device.name.clone(),
                session_key: device.session_key.clone(),
            }),
            boot: boot().to_owned(),
            repair: None,
            sandboxed: request.sandboxed,
            csi: request.csi.clone(),
        };
        Self {
            session,
            plan,
            pinned,
            record,
            finished: false,
            on_automount,
        }
    }

    /// Makes the mount, and returns its record.
    pub(super) fn run(
        mut self,
        budget: AttemptBudget<'_>,
        interrupts: &Interrupts,
    ) -> Result<Record> {
        // The record comes first, so that the mount can be rolled back after a crash.
        self.session.ledger.put(&self.record)?;
        let host = &self.session.host;
        let missing_modules = modules::load_missing(&self.plan.kind.modules, host);
        interrupts.check()?;
        let slot = budget.wait_for_slot(|until| self.acquire_slot(until, interrupts))?;
        let mounted = self.mount(budget.start_helper(), interrupts);
        let proof = mounted.map_err(|error| {
            let error = modules::explain(error, &missing_modules);
            match budget.counts_slot_wait() {
                true => slot.explain(error),
                false => error,
            }
        })?;
        drop(slot);
        interrupts.check()?;
        // Only the container's mount table can hold copies by propagation. The kernel adds them
        // after the mount itself, so all of them exist now.
        if self.session.runs_in == RunsIn::Container {
            propagated::drop_copies(&proof.entry, &proof.parent, proof.mount.unique)?;
        }
        self.record.state = State::Mounted;
        self.set_mount_ids(proof.mount);
        self.session.ledger.put(&self.record)?;
        self.finished = true;
        Ok(self.record.clone())
    }

    /// Waits for a helper slot. A mount that the kernel makes without a device needs none.
    fn acquire_slot(&self, deadline: Instant, interrupts: &Interrupts) -> Result<HelperSlot> {
        let Plan { request, kind, .. } = self.plan;
        let server = match (&kind.method, &kind.device) {
            (_, Some(device)) => Some(device.session_key.as_str()),
            (MountMethod::Helper(_), None) => first_server(&self.plan.source),
            _ => return Ok(HelperSlot::default()),
        };
        let host = &self.session.host;
        let limit = SlotLimit::from_options(&request.options, host)?;
        let until = interrupts.until(deadline);
        slots::acquire(host, server, request.sandboxed, limit, until)
    }

    /// Makes the mount, with the helper or without, and returns its proof.
    fn mount(&mut self, deadline: Instant, interrupts: &Interrupts) -> Result<Proof> {
        if self.plan.kind.is_fuse() {
            confinement::check_fuse()?;
        }
        match (&self.plan.kind.method, &self.plan.program) {
            (MountMethod::Helper(helper), Some(program)) => {
                self.mount_with_helper(helper, program, deadline, interrupts)
            }
            _ => self.mount_without_helper(deadline, interrupts),
        }
    }

    fn mount_with_helper(
        &mut self,
        helper: &Helper,
        program: &Program,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Proof> {
        let mode = match self.plan.route {
            Route::Graft => Mode::Local,
            Route::Preload | Route::Direct => Mode::ToHost,
        };
        let redirects = self.session.host.settings().redirects();
        let redirect = Redirect::create(&redirects, &self.record.id, mode, &self.pinned)?;
        self.plan.option_files.copy()?;
        let secrets = &self.plan.request.secrets;
        let secret_fds = SecretFds::prepare(&helper.secrets, secrets)?;
        let record = &self.record;
        let run = HelperRun::new(self.plan, helper, program, &redirect, &secret_fds, record);
        // The process that probes a FUSE mount starts while the helper runs, which saves time.
        let (is_fuse, mut prestarted) = (self.plan.kind.is_fuse(), None);
        let deadline = if self.record.sandboxed && self.plan.kind.locks_out_others() {
            deadline.min(Instant::now() + POD_KERNEL_LIMIT)
        } else {
            deadline
        };
        let mut run_helper = || {
            run.run(deadline, interrupts, || {
                prestarted = is_fuse.then(|| probe::prestart(deadline).ok()).flatten();
            })
        };
        let (host, target) = (&self.session.host, &self.pinned.path);
        let output = match mode {
            Mode::ToHost => with_own_mount(host, &redirect, target, run_helper),
            Mode::Local => run_helper(),
        };
        let output = output.map_err(|error| self.add_network_hint(error))?;
        let proof = self
            .find_mount(&redirect, &program.path, deadline)
            .map_err(|error| run.annotate(error, &output))?;
        if proof.entry.is_fuse() {
            let cancel = interrupts.until(deadline);
            self.check_daemon(&run, &output, proof.mount, prestarted, cancel)?;
            let origins = secrets.origins();
            self.record.repair = Some(RepairInfo {
                secrets: origins.map(|(key, from)| format!("{key}={from}")).collect(),
                ..RepairInfo::default()
            });
        }
        let daemon = run.daemon(&output);
        self.record.daemon = daemon.map_err(|e| cannot_search(&self.record, e))?;
        Ok(proof)
    }

    fn mount_without_helper(
        &mut self,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Proof> {
        let prepared = self.prepare_device(deadline, interrupts)?;
        let (kind, request) = (self.plan.kind.clone(), &self.plan.request);
        let mut options = self.plan.options.clone();
        let (mut fs_type, mut source) = (request.fs_type.clone(), request.source.clone());
        if let (Some(prepared), Some(device)) = (&prepared, &kind.device) {
            options = options.without(device.options);
            source = prepared.attached.disk.node.to_string_lossy().into_owned();
            fs_type.clone_from(&prepared.fs_type);
            self.record.fs_type.clone_from(&prepared.fs_type);
        }
        let adjustments = self.plan.adjustments.clone();
        let of = request.source_mount;
        let make =
            move || direct::make(&kind, &fs_type, &source, of, &options)?.adjusted(&adjustments);
        // A file system may have to replay its journal, whatever the time limit of the mount.
        let limit = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_secs(20));
        let detached = self.session.host.run_within("mounting", limit, make)??;
        self.attach(detached)?
            .ok_or_else(|| self.nothing_mounted("the kernel"))
    }

    /// Attaches the device, if the kind has one, and prepares its file system.
    fn prepare_device(
        &self,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Option<PreparedDevice>> {
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
        let fs_type = request.fs_type.as_str();
        let preparing = FileSystemRequest {
            host: &self.session.host,
            name: &device.name,
            disk: &attached.disk,
            fs_type: Some(fs_type).filter(|fs_type| *fs_type != AUTO),
            read_only: request.options.read_only(),
            mkfs: request.options.has(MKFS),
            id: &self.record.id,
            deadline,
            interrupts,
        };
        let fs_type = preparing.run()?;
        Ok(Some(PreparedDevice { attached, fs_type }))
    }

    /// Waits for the mount of a helper that has exited successfully, and returns its proof.
    ///
    /// The mount is on the host, if the shim redirected it, or on the placeholder, from where this
    /// function grafts it.
    fn find_mount(
        &mut self,
        redirect: &Redirect,
        program: &Path,
        deadline: Instant,
    ) -> Result<Proof> {
        let until = Instant::now() + APPEAR_LIMIT;
        loop {
            // Without the ids from the shim, the mount is foreign or unfinished.
            if let Some(made) = redirect.mount_ids()
                && let Some(proof) = self.verify(Some(made))?
            {
                return Ok(proof);
            }
            if is_mount(redirect.placeholder()) {
                if self.plan.request.route == RouteChoice::Preload {
                    return Err(Error::mount(format!(
                        "{} mounted in the container; the preload did not intercept its mount(2)",
                        program.display()
                    ))
                    .hint("leave out --route preload; spc then moves the mount to the host"));
                }
                self.record.route = Route::Graft;
                let limit = deadline.saturating_duration_since(Instant::now());
                let detached = Detached::clone_of(redirect.placeholder())?.adjusted_on(
                    &self.session.host,
                    &self.plan.adjustments,
                    limit,
                )?;
                let proof = self.attach(detached)?;
                unmount_placeholder(redirect.placeholder())?;
                return proof.ok_or_else(|| self.nothing_mounted("the helper"));
            }
            if Instant::now() >= until {
                let name = program.display().to_string();
                if self.pinned.top().is_ok_and(|top| top != self.pinned.mount) {
                    return Err(Error::mount(format!(
                        "{name} reported success, but did not finish the mount on {}",
                        show(&self.plan.target)
                    ))
                    .hint(
                        "one of its processes was killed, perhaps because memory ran out; see dmesg",
                    ));
                }
                return Err(self.nothing_mounted(&name));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that a FUSE mount responds, and still exists afterwards. The mount exists before its
    /// daemon responds to the kernel, and many daemons contact their server only then.
    fn check_daemon(
        &self,
        run: &HelperRun<'_>,
        output: &HelperOutput,
        mount: MountId,
        prestarted: Option<PrestartedProbe>,
        cancel: CancelToken<'_>,
    ) -> Result<()> {
        let made = Record {
            mount_id: mount.id,
            unique_id: mount.unique,
            ..self.record.clone()
        };
        let probe_path = self.probe_path()?;
        let target = ProbeTarget {
            target: probe_path.path.clone(),
            mount: waiter_lock::key(mount),
            counts: false,
        };
        let health = probe::probe(&target, prestarted, cancel)?.health;
        let (cause, reason) = match health {
            Health::Hung => ("the new mount does not respond", Reason::NoAnswer),
            Health::Ok if !run.gave_up(output) && entry_of(self.session, &made)?.is_some() => {
                return Ok(());
            }
            _ => ("its daemon exited after mounting", Reason::Helper),
        };
        let failed = Error::mount(format!("{} failed", run.program.display()))
            .because(cause)
            .reason_is(reason);
        Err(self.add_network_hint(run.annotate(failed, output)))
    }

    /// Returns a path by which another process can probe the new mount. On an automount point, the
    /// path leads through a descriptor of this process, which the automount does not block.
    fn probe_path(&self) -> Result<ProbePath> {
        if !self.on_automount {
            return Ok(ProbePath {
                path: self.record.target.clone().into(),
                _fd: None,
            });
        }
        let pinned = Arc::clone(&self.pinned);
        let opened = self.session.host.run("opening the mount", move || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&pinned.parent, &pinned.name, flags, FileMode::empty())
        })?;
        let opened = opened.map_err(|e| Error::mount("cannot open the new mount").because(e))?;
        let path = format!("/proc/{}/fd/{}/.", std::process::id(), opened.as_raw_fd());
        Ok(ProbePath {
            path: path.into(),
            _fd: Some(opened),
        })
    }

    fn verify(&self, made: Option<(u64, u64)>) -> Result<Option<Proof>> {
        let pinned = Arc::clone(&self.pinned);
        let expected_types = self.plan.kind.expected_types.clone();
        self.session.host.run("verifying the mount", move || {
            proof::verify(&pinned, &expected_types, made)
        })?
    }

    /// Attaches a detached mount to the target, and returns its proof. The ledger has the mount id
    /// before the mount is visible.
    fn attach(&mut self, detached: Detached) -> Result<Option<Proof>> {
        self.set_mount_ids(detached.mount);
        let pinned = Arc::clone(&self.pinned);
        let expected_types = self.plan.kind.expected_types.clone();
        let attach = move || {
            detached.attach(&pinned)?;
            proof::verify(&pinned, &expected_types, None)
        };
        self.session.ledger.put_and(&self.record, attach)?
    }

    fn set_mount_ids(&mut self, mount: MountId) {
        self.record.mount_id = mount.id;
        self.record.unique_id = mount.unique;
    }

    /// Adds a hint about the container's network, or a general one if the error has none.
    fn add_network_hint(&self, error: Error) -> Error {
        let own_network = shares_namespace(self.session.host.settings(), "net") == Some(false);
        let hint = "the container has its own network, which may not reach the server: start it with --net=host";
        if own_network && error.class() == Class::Mount {
            return error.hint_also(hint);
        }
        error.hint_if_none(
            "`spc explain` shows how the helper is run; -v also shows the decisions of the shim",
        )
    }

    /// Returns the error for a success that was reported without a mount.
    fn nothing_mounted(&self, program: &str) -> Error {
        Error::mount(format!(
            "{program} reported success, but nothing is mounted on {}",
            show(&self.plan.target)
        ))
        .reason_is(Reason::NoProof)
        .hint("repeat the command with -v; `spc doctor` checks the container")
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished {
            if let Err(error) = roll_back(self.session, &self.record) {
                tracing::error!("cannot roll back the failed mount: {error}");
            }
            services::stop_unused(self.session);
        }
    }
}
