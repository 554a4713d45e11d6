//! Worker process of a call: mounts, binds and unmounts volumes through the pipeline.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::Code;

use crate::client::{enter, root};
use crate::error::{Error, Reason, Result, one_line, show};
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::job::{Answer, Call, Description, Job, code_of, code_of_failure};
use crate::frontends::csi::stats;
use crate::host::namespace::shares_namespace;
use crate::host::runs_in::RunsIn;
use crate::kinds;
use crate::log;
use crate::mount::Request;
use crate::mount::pipeline::mount;
use crate::mount::plan::IN_CONTAINER;
use crate::options::Options;
use crate::options::repair_scope;
use crate::process::interrupts::Interrupts;
use crate::provision;
use crate::recovery::records::load_record;
use crate::state::csi::{CsiVolume, Role};
use crate::state::presence::entry_of;
use crate::state::record::State;
use crate::state::{Record, Session};
use crate::unmount;
use crate::unmount::escalate::UnmountMode;
use crate::volume::allowlist::Allowed;
use crate::volume::unmount::{remove_directory, unmount};
use crate::volume::{Author, Spec, Volume, expand, paths, policy};

/// Largest size of a job in bytes.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Option that creates a missing target, with the mode that kubelet gives to directories of
/// volumes.
const CREATE_TARGET: &str = "x-mount.mkdir=0750";

/// Access mode in which one pod of the node may use a volume.
const SINGLE_WRITER: &str = "SINGLE_NODE_SINGLE_WRITER";

/// Failure of a call: gRPC status code and message.
struct Failure(Code, String);

type Outcome<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(code: Code, error: Error) -> Self {
        // The message becomes a Kubernetes event. The request id in it leads to the log.
        Self(code, log::with_request(error).to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code_of(&error), error)
    }
}

/// Runs the call that standard input describes, and returns its result.
pub fn run() -> Answer {
    let done = read_job().map_err(Failure::from).and_then(|job| {
        let worker = Worker::new(&job)?;
        worker.run(&job.call)
    });
    match done {
        Ok(answer) => answer,
        Err(Failure(code, message)) => Answer {
            code: code.into(),
            message,
            ..Answer::default()
        },
    }
}

/// Reads the job from standard input, and rewinds it: the `spc` of a client root file system that
/// replaces this process reads the job again.
fn read_job() -> Result<Job> {
    let read = || -> std::io::Result<Job> {
        let mut json = String::new();
        std::io::stdin().take(MAX_SIZE).read_to_string(&mut json)?;
        rustix::fs::seek(std::io::stdin(), rustix::fs::SeekFrom::Start(0))?;
        // The text of the JSON error is dropped, because it may quote a part of a secret.
        serde_json::from_str(&json).map_err(|_| std::io::ErrorKind::InvalidData.into())
    };
    read().map_err(|e| Error::system("cannot read the parameters of the call").because(e))
}

/// Job, session and limits of one call.
struct Worker<'a> {
    job: &'a Job,
    session: Session,
    interrupts: Interrupts,
    deadline: Instant,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Job) -> Result<Self> {
        Ok(Self {
            deadline: Instant::now() + Duration::from_millis(job.milliseconds),
            interrupts: Interrupts::block()?,
            session: Session::open()?,
            job,
        })
    }

    fn run(&self, call: &Call) -> Outcome<Answer> {
        let mut answer = Answer::default();
        match call {
            Call::Stats { target } => answer.stats = stats::collect(&self.recorded(target)?)?,
            Call::Expand { target, bytes } => answer.bytes = self.expand(target, *bytes)?,
            Call::Provision(work) => answer.bytes = self.provision(work)?,
            Call::Release { backend } => provision::release(&self.session, backend)?,
            Call::Stage { target, volume } => self.stage(target, volume)?,
            Call::Inline { target, volume } => self.inline(target, volume)?,
            Call::Publish {
                staged_at,
                target,
                access,
                read_only,
            } => self.publish(staged_at, target, access, *read_only)?,
            Call::Unstage { target } => self.unmount(target)?,
            Call::Unpublish { target } => {
                self.unmount(target)?;
                remove_directory(&self.session, Path::new(target))?;
            }
        }
        Ok(answer)
    }

    /// Runs a task of the controller service on a backend. Returns the size of the volume in bytes.
    fn provision(&self, work: &provision::Work) -> Outcome<u64> {
        let root = work.backend.volume(work.secrets.clone())?;
        self.enter_client(&root)?;
        provision::run(
            &self.session,
            work,
            &self.job.volume_id,
            &root,
            &self.interrupts,
            self.deadline,
        )
        .map_err(|failed| {
            let Failure(code, text) = Failure::new(code_of_failure(failed.kind), failed.error);
            let text = format!("backend {}: {text}", work.backend.name);
            Failure(code, root.secrets.mask(&text))
        })
    }

    /// Returns the record of the volume's mount on a directory. Fails if the mount is not on the
    /// host.
    fn recorded(&self, target: &str) -> Outcome<Record> {
        let path = Path::new(target);
        paths::check(path)?;
        let not_found = || {
            let error = Error::mount(format!("{} has no such volume", show(path)));
            Failure::new(Code::NotFound, error)
        };
        let resolved = unmount::resolve(&self.session, path).map_err(|_| not_found())?;
        let record = self.session.ledger.get(&resolved)?.ok_or_else(not_found)?;
        let is_made = record.state != State::Mounting
            && record.csi.as_ref().is_some_and(|csi| self.owns(csi));
        if is_made && entry_of(&self.session, &record)?.is_some() {
            Ok(record)
        } else {
            Err(not_found())
        }
    }

    /// Returns whether a mount belongs to the volume of this call.
    fn owns(&self, csi: &CsiVolume) -> bool {
        csi.driver == self.job.driver.name() && csi.id == self.job.volume_id
    }

    /// Expands a volume to the size of its disk. Returns the size in bytes.
    fn expand(&self, target: &str, bytes: u64) -> Outcome<u64> {
        let record = self.recorded(target)?;
        expand::grow(Path::new(&record.target), bytes).map_err(|error| match error.reason() {
            Reason::Usage => Failure::new(Code::OutOfRange, error),
            _ => error.into(),
        })
    }

    /// Mounts a PersistentVolume for the node.
    fn stage(&self, target: &str, described: &Description) -> Outcome<()> {
        let volume = self.checked_volume(described, Author::Administrator)?;
        self.mount(
            volume,
            target,
            self.csi_volume(Role::Stage, &described.access),
        )
    }

    /// Mounts an inline volume for a pod.
    fn inline(&self, target: &str, described: &Description) -> Outcome<()> {
        let allowed = Allowed::read(&self.session.host)?;
        let mut volume = self.checked_volume(described, Author::Pod(&allowed))?;
        volume.options.push(CREATE_TARGET.into())?;
        self.mount(
            volume,
            target,
            self.csi_volume(Role::Inline, &described.access),
        )
    }

    /// Checks that the author may have the volume, and that it belongs to this driver.
    fn checked_volume(&self, described: &Description, author: Author<'_>) -> Outcome<Volume> {
        let spec = Spec {
            fs_type: described.fs_type.clone(),
            attributes: described.attributes.clone(),
            mount_options: described.mount_options.clone(),
            secrets: described.secrets.clone(),
            read_only: described.read_only,
            group: described.group.clone(),
        };
        let mut volume = Volume::new(&spec, author)?;
        let driver = Driver::for_volume(&volume.fs_type, &volume.source);
        if driver != self.job.driver {
            return Err(Error::usage(format!(
                "volumes of type {} are not for the driver {}",
                volume.fs_type,
                self.job.driver.name()
            ))
            .hint(format!("use the driver {}", driver.name()))
            .into());
        }
        if described.group.is_some() && policy::unrestricted(&volume.fs_type).has_owners() {
            let error = Error::mount(format!(
                "files of type {} get no group by an option of the mount",
                volume.fs_type
            ));
            return Err(Failure::new(
                Code::FailedPrecondition,
                error.hint("set the group by the options of this type, and leave out fsGroup"),
            ));
        }
        // Pods see a volume through binds. A repair on the host alone would leave those dead.
        if !volume.options.has(repair_scope::OPTION) {
            let option = format!("{}=containers", repair_scope::OPTION);
            volume.options.push(option)?;
        }
        Ok(volume)
    }

    /// Returns the part of the record that names the volume of this call.
    fn csi_volume(&self, role: Role, access: &str) -> CsiVolume {
        CsiVolume {
            driver: self.job.driver.name().into(),
            id: self.job.volume_id.clone(),
            role,
            access: access.to_owned(),
            staged_at: None,
        }
    }

    /// Mounts a volume on a target, which the record then attributes to `csi`.
    fn mount(&self, volume: Volume, target: &str, csi: CsiVolume) -> Outcome<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let request = Request {
            timeout: Some(volume.timeout.min(left)),
            csi: Some(csi),
            ..volume.request(target)?
        };
        self.enter_client(&volume)?;
        self.run_pipeline(request).map_err(|(code, error)| {
            // A list of events shows only the first line, so the cause goes there.
            let first = format!("cannot mount {}: {}", volume.source, one_line(&error));
            let Failure(code, text) = Failure::new(code, error);
            let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
            Failure(code, volume.secrets.mask(&format!("{first}\n{rest}")))
        })
    }

    /// Continues in the client root file system, unless the volume needs no client program.
    /// Services such as iscsid then outlive the container. For FUSE programs whose source is a
    /// directory the pipeline decides later.
    fn enter_client(&self, volume: &Volume) -> Result<()> {
        let is_local = Path::new(&volume.source).is_absolute();
        let settings = self.session.host.settings();
        if self.session.runs_in != RunsIn::Container
            || is_local
            || kinds::is_clientless(&volume.fs_type)
            || volume.options.has(IN_CONTAINER)
            || shares_namespace(settings, "pid") == Some(false)
        {
            return Ok(());
        }
        enter::exec_in_client_root(&self.session.host, &root::own_id()?).map(drop)
    }

    /// Binds a staged volume for a pod.
    fn publish(&self, staged_at: &str, target: &str, access: &str, read_only: bool) -> Outcome<()> {
        let staged_at = Path::new(staged_at);
        let path = PathBuf::from(target);
        paths::check(staged_at)?;
        paths::check(&path)?;
        let not_staged = |error: Error| Failure::new(Code::FailedPrecondition, error);
        let staged_at = unmount::resolve(&self.session, staged_at).map_err(not_staged)?;
        let until = self.interrupts.until(self.deadline);
        // The lock keeps unmounts and repairs from changing the staged mount, and a second pod from
        // getting a volume that is for one pod.
        let _lock = self.session.ledger.lock(&staged_at, until)?;
        let staged = self.staged(&staged_at)?.ok_or_else(|| {
            not_staged(Error::mount(format!(
                "the volume is not staged at {}",
                show(&staged_at)
            )))
        })?;
        let csi = CsiVolume {
            staged_at: Some(staged.target.clone()),
            ..self.csi_volume(Role::Publish, access)
        };
        self.check_single_writer(&csi, &path)?;
        let mut options = Options::parse([CREATE_TARGET])?;
        if read_only {
            options.push("ro".into())?;
        }
        let request = Request {
            options,
            timeout: Some(self.deadline.saturating_duration_since(Instant::now())),
            no_symlink_tail: paths::kubelet_tail(&path),
            source_mount: Some((staged.mount_id, staged.unique_id)),
            csi: Some(csi),
            ..Request::new("bind", staged.target.as_str(), path)
        };
        self.run_pipeline(request.validated()?)
            .map_err(|(code, error)| Failure::new(code, error))
    }

    /// Returns the record of the volume's staged mount, if the mount is on the host. The caller
    /// holds the lock of the target.
    fn staged(&self, target: &Path) -> Result<Option<Record>> {
        let Some(record) = load_record(&self.session, target)? else {
            return Ok(None);
        };
        let is_staged = record
            .csi
            .as_ref()
            .is_some_and(|csi| self.owns(csi) && csi.role == Role::Stage);
        if !is_staged || record.state == State::Mounting {
            return Ok(None);
        }
        Ok(entry_of(&self.session, &record)?.map(|_| record))
    }

    /// Checks that no other pod uses a volume that is for one pod only.
    fn check_single_writer(&self, wanted: &CsiVolume, target: &Path) -> Outcome<()> {
        if wanted.access != SINGLE_WRITER {
            return Ok(());
        }
        let is_other = |record: &Record| {
            let is_same_volume = record
                .csi
                .as_ref()
                .is_some_and(|csi| self.owns(csi) && csi.role == wanted.role);
            is_same_volume && Path::new(&record.requested_target) != target
        };
        if self.session.ledger.has(is_other)? {
            let error = Error::mount("another pod of this node uses the volume")
                .because("its access mode is ReadWriteOncePod");
            return Err(Failure::new(Code::FailedPrecondition, error));
        }
        Ok(())
    }

    /// Runs the pipeline. The code of a failure is final only if nothing is left of the mount.
    fn run_pipeline(&self, request: Request) -> std::result::Result<(), (Code, Error)> {
        let target = request.target.clone();
        let error = match mount(&self.session, request, &self.interrupts) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let is_another = matches!(error.reason(), Reason::Occupied | Reason::Dead);
        let is_left = !is_another && !matches!(self.session.ledger.get(&target), Ok(None));
        let code = if is_left {
            Code::Aborted
        } else {
            code_of(&error)
        };
        Err((code, error))
    }

    /// Unmounts the volume from a target. Refuses the mount of another volume.
    fn unmount(&self, target: &str) -> Outcome<()> {
        let target = Path::new(target);
        paths::check(target)?;
        let known = self.session.ledger.get(target)?;
        if let Some(record) = &known {
            if let Some(csi) = &record.csi
                && !self.owns(csi)
            {
                let error = Error::usage(format!("{} has another volume", show(target)));
                return Err(error
                    .because(format!("that of {} {}", csi.driver, csi.id))
                    .into());
            }
            // Disks and services such as iscsid are released in the client root that started them.
            if let Some(root) = &record.root
                && self.session.runs_in == RunsIn::Container
            {
                enter::exec_in_client_root(&self.session.host, root)?;
            }
        }
        // Processes that are blocked in a volume that does not respond keep it busy.
        let hangs = || known.as_ref().is_some_and(stats::hangs);
        let role = known.as_ref().and_then(|record| record.csi.as_ref());
        let role = role.map(|csi| csi.role);
        let by_force = UnmountMode {
            // Force on a bind would abort the requests of all pods, and the server may come back.
            force: role != Some(Role::Publish),
            lazy: true,
        };
        // Without force, processes that are blocked in detached binds would keep the daemon
        // running.
        if role == Some(Role::Stage) && hangs() {
            return Ok(unmount(&self.session, target, by_force)?);
        }
        match unmount(&self.session, target, UnmountMode::default()) {
            // The server is gone, and kubelet has already ended the processes that use the volume.
            Err(error)
                if error.reason() == Reason::NoAnswer
                    || error.reason() == Reason::Busy && hangs() =>
            {
                Ok(unmount(&self.session, target, by_force)?)
            }
            done => Ok(done?),
        }
    }
}
