//! Worker process of a call: mounts, binds and unmounts volumes through the pipeline.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::Code;

use crate::client::{enter, root};
use crate::error::{Error, Reason, Result, one_line, show};
use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::job::{Answer, Call, Description, Job, code_of, code_of_kind};
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

/// Size in bytes up to which a job is read.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Option that has a missing target created, with kubelet's mode for the directories of volumes.
const CREATE_TARGET: &str = "x-mount.mkdir=0750";

/// Access mode in which one pod of the node may use a volume.
const SINGLE_WRITER: &str = "SINGLE_NODE_SINGLE_WRITER";

/// Failure of a call: its code, and its reason.
struct Failure(Code, String);

type Outcome<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(code: Code, error: Error) -> Self {
        // The error appears in an event. The id leads from there to the log.
        Self(code, log::with_request(error).to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code_of(&error), error)
    }
}

/// Does the call that standard input describes, and returns its result.
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

/// Reads the job from standard input, and rewinds it.
///
/// The `spc` of a client root file system may replace this process, and reads the job again.
fn read_job() -> Result<Job> {
    let read = || -> std::io::Result<Job> {
        let mut json = String::new();
        std::io::stdin().take(MAX_SIZE).read_to_string(&mut json)?;
        rustix::fs::seek(std::io::stdin(), rustix::fs::SeekFrom::Start(0))?;
        // The text of the JSON error may repeat a part of a secret.
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
        match call {
            Call::Stats { target } => {
                return Ok(Answer {
                    stats: stats::look(&self.known(target)?)?,
                    ..Answer::default()
                });
            }
            Call::Expand { target, bytes } => return self.expand(target, *bytes),
            Call::Provision(work) => return self.provision(work),
            Call::Release { backend } => Ok(provision::release(&self.session, backend)?),
            Call::Stage { target, volume } => self.stage(target, volume),
            Call::Inline { target, volume } => self.inline(target, volume),
            Call::Publish {
                staged_at,
                target,
                access,
                read_only,
            } => self.publish(staged_at, target, access, *read_only),
            Call::Unstage { target } => self.unmount(target),
            Call::Unpublish { target } => {
                self.unmount(target)?;
                Ok(remove_directory(&self.session, Path::new(target))?)
            }
        }?;
        Ok(Answer::default())
    }

    /// Does a task of the controller service on a backend.
    fn provision(&self, work: &provision::Work) -> Outcome<Answer> {
        let root = work.backend.volume(work.secrets.clone())?;
        self.enter_client(&root)?;
        let task = (work, self.job.volume_id.as_str());
        let done = provision::run(&self.session, task, &root, &self.interrupts, self.deadline);
        let bytes = done.map_err(|failed| {
            let Failure(code, text) = Failure::new(code_of_kind(failed.kind), failed.error);
            let text = format!("backend {}: {text}", work.backend.name);
            Failure(code, root.secrets.mask(&text))
        })?;
        Ok(Answer {
            bytes,
            ..Answer::default()
        })
    }

    /// Returns the record of the volume's mount on a directory.
    fn known(&self, target: &str) -> Outcome<Record> {
        let path = Path::new(target);
        paths::check(path)?;
        let not_found = || {
            let error = Error::mount(format!("{} has no such volume", show(path)));
            Failure::new(Code::NotFound, error)
        };
        let resolved = unmount::resolve(&self.session, path).map_err(|_| not_found())?;
        let record = self.session.ledger.get(&resolved)?.ok_or_else(not_found)?;
        let is_it = record.csi.as_ref().is_some_and(|csi| {
            csi.driver == self.job.driver.name() && csi.id == self.job.volume_id
        });
        let is_there = record.state != State::Mounting && is_it;
        match is_there && entry_of(&self.session, &record)?.is_some() {
            true => Ok(record),
            false => Err(not_found()),
        }
    }

    /// Lets a volume use the space that its disk was given.
    fn expand(&self, target: &str, bytes: u64) -> Outcome<Answer> {
        let record = self.known(target)?;
        let grown = expand::grow(Path::new(&record.target), bytes);
        let bytes = grown.map_err(|error| match error.reason() {
            Reason::Usage => Failure::new(Code::OutOfRange, error),
            _ => error.into(),
        })?;
        Ok(Answer {
            bytes,
            ..Answer::default()
        })
    }

    /// Mounts a volume of a PersistentVolume for the node.
    fn stage(&self, target: &str, described: &Description) -> Outcome<()> {
        let volume = self.volume(described, Author::Administrator)?;
        self.mount(volume, target, self.mark(Role::Stage, &described.access))
    }

    /// Mounts an inline volume for a pod.
    fn inline(&self, target: &str, described: &Description) -> Outcome<()> {
        let allowed = Allowed::read(&self.session.host)?;
        let mut volume = self.volume(described, Author::Pod(&allowed))?;
        volume.options.push(CREATE_TARGET.into())?;
        self.mount(volume, target, self.mark(Role::Inline, &described.access))
    }

    /// Checks that the author may have the volume, and that it is one of this driver.
    fn volume(&self, described: &Description, author: Author<'_>) -> Outcome<Volume> {
        let spec = Spec {
            fs_type: described.fs_type.clone(),
            attributes: described.attributes.clone(),
            mount_options: described.mount_options.clone(),
            secrets: described.secrets.clone(),
            read_only: described.read_only,
            group: described.group.clone(),
        };
        let mut volume = Volume::new(&spec, author)?;
        let fitting = Driver::for_volume(&volume.fs_type, &volume.source);
        if fitting != self.job.driver {
            return Err(Error::usage(format!(
                "volumes of type {} are not for the driver {}",
                volume.fs_type,
                self.job.driver.name()
            ))
            .hint(format!("use the driver {}", fitting.name()))
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
        // Pods see a volume through binds, which a repair of the mount alone would leave dead.
        if !volume.options.has(repair_scope::OPTION) {
            let option = format!("{}=containers", repair_scope::OPTION);
            volume.options.push(option)?;
        }
        Ok(volume)
    }

    fn mark(&self, role: Role, access: &str) -> CsiVolume {
        CsiVolume {
            driver: self.job.driver.name().into(),
            id: self.job.volume_id.clone(),
            role,
            access: access.to_owned(),
            staged_at: None,
        }
    }

    fn mount(&self, volume: Volume, target: &str, mark: CsiVolume) -> Outcome<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let request = Request {
            timeout: Some(volume.timeout.min(left)),
            csi: Some(mark),
            ..volume.request(target)?
        };
        self.enter_client(&volume)?;
        self.run_pipeline(request).map_err(|(code, error)| {
            // A list of events shows the first line only.
            let first = format!("cannot mount {}: {}", volume.source, one_line(&error));
            let Failure(code, text) = Failure::new(code, error);
            let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
            Failure(code, volume.secrets.mask(&format!("{first}\n{rest}")))
        })
    }

    /// Continues in the client root file system, if a client of this kind runs there: with it,
    /// services such as iscsid outlive the container. The pipeline decides for FUSE programs that
    /// read a directory.
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
        // Neither an unmount nor a repair changes the staged mount meanwhile, and no second pod
        // gets a volume for one.
        let _lock = self.session.ledger.lock(&staged_at, until)?;
        let staged = self.staged(&staged_at)?.ok_or_else(|| {
            not_staged(Error::mount(format!(
                "the volume is not staged at {}",
                show(&staged_at)
            )))
        })?;
        let mark = CsiVolume {
            staged_at: Some(staged.target.clone()),
            ..self.mark(Role::Publish, access)
        };
        self.check_single_writer(&mark, &path)?;
        let mut options = Options::parse([CREATE_TARGET])?;
        if read_only {
            options.push("ro".into())?;
        }
        let request = Request {
            options,
            timeout: Some(self.deadline.saturating_duration_since(Instant::now())),
            no_symlink_tail: paths::depth(&path),
            source_mount: Some((staged.mount_id, staged.unique_id)),
            csi: Some(mark),
            ..Request::new("bind", staged.target.as_str(), path)
        };
        self.run_pipeline(request.validated()?)
            .map_err(|(code, error)| Failure::new(code, error))
    }

    /// Returns the record of the volume's staged mount, if that is on the host. The caller holds
    /// the lock of the target.
    fn staged(&self, target: &Path) -> Result<Option<Record>> {
        let Some(record) = load_record(&self.session, target)? else {
            return Ok(None);
        };
        let wanted = self.mark(Role::Stage, "");
        let is_it = record.csi.as_ref().is_some_and(|csi| {
            (&csi.driver, &csi.id, csi.role) == (&wanted.driver, &wanted.id, wanted.role)
        });
        if !is_it || record.state == State::Mounting {
            return Ok(None);
        }
        Ok(entry_of(&self.session, &record)?.map(|_| record))
    }

    /// Checks that no other pod uses a volume that is for one pod only.
    fn check_single_writer(&self, mark: &CsiVolume, target: &Path) -> Outcome<()> {
        if mark.access != SINGLE_WRITER {
            return Ok(());
        }
        let is_other = |record: &Record| {
            let is_same_volume = record.csi.as_ref().is_some_and(|csi| {
                (&csi.driver, &csi.id, csi.role) == (&mark.driver, &mark.id, mark.role)
            });
            is_same_volume && Path::new(&record.requested_target) != target
        };
        if self.session.ledger.has(is_other)? {
            let error = Error::mount("another pod of this node uses the volume")
                .because("its access mode is ReadWriteOncePod");
            return Err(Failure::new(Code::FailedPrecondition, error));
        }
        Ok(())
    }

    /// Makes a mount. A failure has a final code only if nothing is left of the mount.
    fn run_pipeline(&self, request: Request) -> std::result::Result<(), (Code, Error)> {
        let target = request.target.clone();
        let error = match mount(&self.session, request, &self.interrupts) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let is_there = matches!(error.reason(), Reason::Occupied | Reason::Dead);
        let is_left = !is_there && !matches!(self.session.ledger.get(&target), Ok(None));
        let code = if is_left {
            Code::Aborted
        } else {
            code_of(&error)
        };
        Err((code, error))
    }

    /// Unmounts what is mounted on a target, if it is of this volume.
    fn unmount(&self, target: &str) -> Outcome<()> {
        let target = Path::new(target);
        paths::check(target)?;
        let known = self.session.ledger.get(target)?;
        if let Some(record) = &known {
            if let Some(csi) = &record.csi
                && (csi.driver != self.job.driver.name() || csi.id != self.job.volume_id)
            {
                let error = Error::usage(format!("{} has another volume", show(target)));
                return Err(error
                    .because(format!("that of {} {}", csi.driver, csi.id))
                    .into());
            }
            // Disks and services end where they were started.
            if let Some(root) = &record.root
                && self.session.runs_in == RunsIn::Container
            {
                enter::exec_in_client_root(&self.session.host, root)?;
            }
        }
        // Whoever looks at a volume that does not respond makes it busy.
        let hangs = || known.as_ref().is_some_and(stats::hangs);
        let role = known.as_ref().and_then(|record| record.csi.as_ref());
        let role = role.map(|csi| csi.role);
        let by_force = UnmountMode {
            // That ends the mount of all pods, and the server may come back.
            force: role != Some(Role::Publish),
            lazy: true,
        };
        // The daemon would stay for those who wait at binds that were detached.
        if role == Some(Role::Stage) && hangs() {
            return Ok(unmount(&self.session, target, by_force)?);
        }
        match unmount(&self.session, target, UnmountMode::default()) {
            // The server is gone. kubelet has ended the processes that use the volume.
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
