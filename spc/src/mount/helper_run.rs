//! Runs a helper: directly, bounded in time, killable, with its output kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Pid;

use crate::error::{Cause, Class, Error, Reason, Result, show};
use crate::helper::program::Program;
use crate::helper::secret_fds::SecretFds;
use crate::host::cgroup;
use crate::host::redirect::Redirect;
use crate::kinds::model::{Diagnostics, Helper};
use crate::mount::Plan;
use crate::options::Secrets;
use crate::process::interrupts::Interrupts;
use crate::process::marks;
use crate::process::output::{Output, last_lines};
use crate::process::wait::{Ended, describe, wait};
use crate::state::Record;
use crate::{log, sys};

/// The shim in the image; named to helpers whose libc does not read `/etc/ld.so.preload`.
pub const SHIM: &str = "/usr/lib/spc/libspc_shim.so";

/// A helper, ready to run.
pub struct HelperRun<'a> {
    /// Its program.
    pub program: &'a Path,
    /// Its arguments.
    argv: Vec<String>,
    /// Variables of its environment.
    env: &'a [(&'static str, String)],
    /// It is told that the kernel keeps no keys.
    no_keys: bool,
    /// The claim whose stand-in it mounts on.
    redirect: &'a Redirect,
    /// Mark for its processes.
    id: &'a str,
    /// Its own log file, if it has one.
    log: Option<PathBuf>,
    /// How its failures are told.
    diagnostics: Diagnostics,
    /// The target on the host, which it knows by its stand-in.
    target: &'a Path,
    /// What it is given besides arguments.
    secret_fds: &'a SecretFds<'a>,
    /// What must not be repeated of what it says.
    secrets: &'a Secrets,
    /// The cgroup of its own that it and its daemon get, unless they end with the container.
    scope: Option<CgroupScope>,
}

/// A cgroup on the host.
struct CgroupScope {
    name: String,
    /// What it is for, for people.
    description: String,
}

impl CgroupScope {
    /// The cgroup of its own for what a mount with a client root leaves running.
    fn for_record(record: &Record) -> Option<Self> {
        let target = Path::new(&record.target);
        let (fs_type, source) = (&record.fs_type, &record.source);
        record.root.is_some().then(|| Self {
            name: cgroup::name_of(target),
            description: format!("spc: {fs_type} {source} on {}", show(target)),
        })
    }
}

impl<'a> HelperRun<'a> {
    /// The helper of a plan, which is to mount on the stand-in of a claim.
    pub fn new(
        plan: &'a Plan,
        (helper, program): (&'a Helper, &'a Program),
        redirect: &'a Redirect,
        secret_fds: &'a SecretFds<'a>,
        record: &Record,
    ) -> Self {
        let placeholder = redirect.placeholder().to_string_lossy();
        Self {
            program: &program.path,
            argv: plan.argv(&placeholder, |key| secret_fds.number(key)),
            env: &helper.env,
            no_keys: helper.no_keys,
            redirect,
            id: &plan.id,
            log: helper.log.as_ref().map(PathBuf::from),
            diagnostics: plan.kind.diagnostics,
            target: &plan.target,
            secret_fds,
            secrets: &plan.request.secrets,
            scope: CgroupScope::for_record(record),
        }
    }

    /// Runs the helper to its end, and gives back what it said. What it leaves running afterwards is the mount's daemon.
    /// `meanwhile` is done when it has begun.
    ///
    /// # Errors
    /// It cannot be started, fails, dies by a signal, takes too long, or a signal stops us.
    pub fn run(
        &self,
        deadline: Instant,
        interrupts: &Interrupts,
        meanwhile: impl FnOnce(),
    ) -> Result<HelperOutput> {
        let name = self.program.display().to_string();
        let start_of_log = self
            .log
            .as_ref()
            .and_then(|log| log.metadata().ok())
            .map_or(0, |m| m.len());
        let fail = |cause: Cause| Error::mount(format!("{name} failed")).because(cause);
        let output = Output::new().map_err(|e| fail(e.into()))?;
        let reports = UnixDatagram::bind(self.redirect.report()).map_err(|e| fail(e.into()))?;
        let started = Instant::now();
        let mut command = Command::new(self.program);
        command
            .args(&self.argv)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("LD_PRELOAD", SHIM)
            .env(marks::MARK, self.id)
            .env("SPC_REPORT", self.redirect.report())
            .stdin(Stdio::null())
            .stdout(output.handle().map_err(|e| fail(e.into()))?)
            .stderr(output.handle().map_err(|e| fail(e.into()))?);
        log::hand_on(&mut command);
        self.secret_fds.apply(&mut command)?;
        tracing::debug!(helper = %name, argv = ?self.argv, "running");
        if self.no_keys {
            sys::without_call(&mut command, libc::SYS_add_key);
        }
        let child = match &self.scope {
            Some(CgroupScope { name, description }) => {
                cgroup::start(name, description, &mut command, sys::tie_to_parent)?
            }
            None => {
                let spawned = sys::tie_to_parent(&mut command).spawn();
                Pid::from_child(&spawned.map_err(|e| fail(e.into()))?)
            }
        };
        let cgroup = self.scope.as_ref().and_then(|_| cgroup::path_of(child));
        meanwhile();
        let ended = wait(child, &name, started, deadline, Some(interrupts));
        output.seal();
        let shim = reports_of(&reports);
        // What the daemon's shim says later goes to the log of `spc serve`.
        let _ = std::fs::remove_file(self.redirect.report());
        for line in &shim {
            tracing::debug!(shim = %self.secrets.mask(line), "decision");
        }
        let said = HelperOutput {
            output,
            start_of_log,
            shim,
            cgroup,
        };
        let failed = match ended.map(describe) {
            Ok(Ended::Code(0)) => return Ok(said),
            Ok(Ended::Code(code)) => {
                fail(format!("exit status {code}").into()).reason_is(Reason::Helper)
            }
            Ok(Ended::Signal(signal)) => {
                fail(format!("killed by signal {signal}").into()).reason_is(Reason::Helper)
            }
            Err(error) if error.class() == Class::Interrupted => return Err(error),
            Err(error) => {
                let failed = fail(error.summary().into()).reason_is(error.reason());
                match error.hint_text() {
                    Some(hint) => failed.hint(hint),
                    None => failed,
                }
            }
        };
        Err(self.annotate(failed, &said))
    }

    /// Whether it has logged in this run that it is about to end.
    pub fn gave_up(&self, said: &HelperOutput) -> bool {
        let (Some(file), Some(words)) = (&self.log, self.diagnostics.gives_up) else {
            return false;
        };
        errors_in(file, said.start_of_log, self.diagnostics.line)
            .iter()
            .any(|line| line.contains(words))
    }

    /// The processes that it has left running, by their ids in the container.
    ///
    /// # Errors
    /// They cannot be looked for.
    pub fn daemon(&self, said: &HelperOutput) -> std::io::Result<Vec<i32>> {
        match &said.cgroup {
            Some(cgroup) => marks::daemons_in(cgroup, self.id),
            None => marks::daemons(self.id),
        }
    }

    /// Adds to an error what the helper said, and what is known about that.
    pub fn annotate(&self, error: Error, said: &HelperOutput) -> Error {
        let mut log = said.output.last_lines(self.diagnostics.line);
        if let Some(file) = &self.log {
            log.extend(errors_in(file, said.start_of_log, self.diagnostics.line));
        }
        let mut seen = BTreeSet::new();
        log.retain(|line| seen.insert(line.clone()));
        let hints = self.diagnostics.hints.iter();
        let known = hints.filter(|(words, _)| log.iter().any(|line| line.contains(words)));
        let known = known.map(|(_, hint)| *hint).next();
        let (placeholder, target) = (
            self.redirect.placeholder().to_string_lossy(),
            show(self.target),
        );
        for line in &mut log {
            *line = self.secrets.mask(&line.replace(&*placeholder, &target));
        }
        log.extend(
            said.shim
                .iter()
                .filter(|line| line.contains("decision=failed") && seen.insert((*line).clone()))
                .map(|line| format!("shim: {}", self.secrets.mask(line))),
        );
        let told = error.log(log);
        match known {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

/// What a helper said, by whatever means.
pub struct HelperOutput {
    output: Output,
    start_of_log: u64,
    shim: Vec<String>,
    /// The cgroup that is its own, and its daemon's.
    cgroup: Option<PathBuf>,
}

/// The last lines a helper wrote to its log during this run.
fn errors_in(log: &Path, from: u64, counts: fn(&str) -> Option<&str>) -> Vec<String> {
    File::open(log)
        .and_then(|file| last_lines(&file, from, counts))
        .unwrap_or_default()
}

fn reports_of(socket: &UnixDatagram) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    if socket.set_nonblocking(true).is_ok() {
        while let Ok(length) = socket.recv(&mut buffer) {
            lines.push(
                String::from_utf8_lossy(&buffer[..length])
                    .trim_end()
                    .to_owned(),
            );
        }
    }
    lines
}
