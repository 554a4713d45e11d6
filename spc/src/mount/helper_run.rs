//! Running a helper: without a shell, with a time limit, and with its output kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Pid;

use crate::error::{Cause, Class, Error, Reason, Result, show};
use crate::helper::program::Program;
use crate::helper::sandbox::Sandbox;
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

/// Path of the shim in the image, for `LD_PRELOAD`. Not every libc reads `/etc/ld.so.preload`.
pub const SHIM: &str = "/usr/lib/spc/libspc_shim.so";

/// Number of the shim's reports that are kept of a helper.
const MAX_REPORTS: usize = 1000;

/// Helper that is ready to run.
pub struct HelperRun<'a> {
    /// Path of the program.
    pub program: &'a Path,
    /// Arguments.
    argv: Vec<String>,
    /// Additional environment variables.
    env: &'a [(&'static str, String)],
    /// Makes add_key(2) fail, as on a kernel without keyrings.
    no_keys: bool,
    /// Redirect whose placeholder is the helper's target.
    redirect: &'a Redirect,
    /// Id of the mount, with which its processes are marked.
    id: &'a str,
    /// Log file, if the helper does not log to stderr.
    log: Option<PathBuf>,
    /// Rules that select error messages and hints from its output.
    diagnostics: Diagnostics,
    /// Target on the host, which replaces the placeholder in messages.
    target: &'a Path,
    /// Secrets for the helper.
    secret_fds: &'a SecretFds<'a>,
    /// Secrets to mask in its output.
    secrets: &'a Secrets,
    /// Cgroup for the helper and its daemon, unless they run in the container.
    scope: Option<CgroupScope>,
    /// Types that it may mount, if it runs in a sandbox.
    sandboxed_types: Option<&'a [String]>,
    /// Whether it drops capabilities itself.
    drops_capabilities: bool,
}

/// Cgroup on the host for one mount.
struct CgroupScope {
    name: String,
    /// Description that systemd shows.
    description: String,
}

impl CgroupScope {
    /// Returns the cgroup for a mount with a client root file system.
    fn for_record(record: &Record) -> Option<Self> {
        let target = Path::new(&record.target);
        let (fs_type, source) = (&record.fs_type, &record.source);
        record.root.is_some().then(|| Self {
            name: cgroup::name_for(target),
            description: format!("spc: {fs_type} {source} on {}", show(target)),
        })
    }
}

impl<'a> HelperRun<'a> {
    /// Prepares the helper of a plan, with the placeholder of a redirect as its target.
    pub fn new(
        plan: &'a Plan,
        helper: &'a Helper,
        program: &'a Program,
        redirect: &'a Redirect,
        secret_fds: &'a SecretFds<'a>,
        record: &Record,
    ) -> Self {
        let placeholder = redirect.placeholder().to_string_lossy();
        let sandboxed = plan.request.sandboxed && !helper.starts_services;
        let mut argv = plan.argv(&placeholder, |key| secret_fds.number(key));
        if sandboxed {
            argv.extend(helper.sandbox_args.iter().map(|arg| (*arg).to_owned()));
        }
        Self {
            program: &program.path,
            argv,
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
            drops_capabilities: helper.drops_capabilities,
            sandboxed_types: sandboxed.then_some(plan.kind.expected_types.as_slice()),
        }
    }

    /// Runs the helper to its end, and returns its output. Processes that it leaves running are the
    /// daemon of the mount. `after_start` is called once the helper has started.
    ///
    /// # Errors
    /// The helper cannot be started, fails, is killed by a signal or exceeds its limit, or spc
    /// receives a termination signal.
    pub fn run(
        &self,
        deadline: Instant,
        interrupts: &Interrupts,
        after_start: impl FnOnce(),
    ) -> Result<HelperOutput> {
        let name = self.program.display().to_string();
        let log_offset = self
            .log
            .as_ref()
            .and_then(|log| log.metadata().ok())
            .map_or(0, |m| m.len());
        let fail = |cause: Cause| Error::mount(format!("{name} failed")).because(cause);
        let output = Output::new().map_err(|e| fail(e.into()))?;
        let reports = UnixDatagram::bind(self.redirect.report()).map_err(|e| fail(e.into()))?;
        let started = Instant::now();
        let sandbox = self.sandbox()?;
        let mut command = match &sandbox {
            Some(sandbox) => sandbox.command(self.program)?,
            None => {
                let mut command = Command::new(self.program);
                command
                    .env("LD_PRELOAD", SHIM)
                    .env("SPC_REPORT", self.redirect.report());
                command
            }
        };
        command
            .args(&self.argv)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.handle().map_err(|e| fail(e.into()))?)
            .stderr(output.handle().map_err(|e| fail(e.into()))?);
        marks::mark(&mut command, self.id);
        log::pass_request(&mut command);
        self.secret_fds.apply(&mut command)?;
        tracing::debug!(helper = %name, argv = ?self.argv, "running");
        if self.no_keys {
            sys::seccomp::deny_syscall(&mut command, libc::SYS_add_key);
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
        let served = sandbox.map(Sandbox::serve).transpose()?;
        after_start();
        let ended = wait(child, &name, started, deadline, Some(interrupts));
        if let Some(served) = served {
            served.end();
        }
        output.seal();
        let shim = received_reports(&reports);
        // Later reports, from the shim in the daemon, go to the log of `spc serve`.
        let _ = std::fs::remove_file(self.redirect.report());
        for line in &shim {
            tracing::debug!(shim = %self.secrets.mask(line), "decision");
        }
        let output = HelperOutput {
            output,
            log_offset,
            shim,
            cgroup,
        };
        let failed = match ended.map(describe) {
            Ok(Ended::Code(0)) => return Ok(output),
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
        Err(self.annotate(failed, &output))
    }

    /// Returns the sandbox for the helper, if it runs in one.
    fn sandbox(&self) -> Result<Option<Sandbox>> {
        let Some(types) = self.sandboxed_types else {
            return Ok(None);
        };
        let (placeholder, files) = (self.redirect.placeholder(), self.redirect.files());
        Sandbox::new(
            placeholder,
            files,
            self.log.as_deref(),
            types,
            self.drops_capabilities,
        )
        .map(Some)
    }

    /// Returns whether the helper's log contains the text with which its daemon announces that the
    /// mount will end.
    pub fn gave_up(&self, output: &HelperOutput) -> bool {
        let (Some(file), Some(words)) = (&self.log, self.diagnostics.gives_up) else {
            return false;
        };
        log_lines(file, output.log_offset, self.diagnostics.line)
            .iter()
            .any(|line| line.contains(words))
    }

    /// Returns the processes that the helper has left running, by their ids in the container.
    ///
    /// # Errors
    /// The processes cannot be searched.
    pub fn daemon(&self, output: &HelperOutput) -> std::io::Result<Vec<i32>> {
        match &output.cgroup {
            Some(cgroup) => marks::daemons_in(cgroup, self.id),
            None => marks::daemons(self.id),
        }
    }

    /// Adds the helper's messages to an error, and a hint for a known message.
    pub fn annotate(&self, error: Error, output: &HelperOutput) -> Error {
        let mut log = output.output.last_lines(self.diagnostics.line);
        if let Some(file) = &self.log {
            log.extend(log_lines(file, output.log_offset, self.diagnostics.line));
        }
        let mut seen = BTreeSet::new();
        log.retain(|line| seen.insert(line.clone()));
        let hints = self.diagnostics.hints.iter();
        let known = hints.filter(|(words, _)| log.iter().any(|line| line.contains(words)));
        let known_hint = known.map(|(_, hint)| *hint).next();
        let transient = self.diagnostics.transient;
        let is_transient =
            transient.is_some_and(|words| log.iter().any(|line| line.contains(words)));
        let (placeholder, target) = (
            self.redirect.placeholder().to_string_lossy(),
            show(self.target),
        );
        for line in &mut log {
            *line = self.secrets.mask(&line.replace(&*placeholder, &target));
        }
        log.extend(
            output
                .shim
                .iter()
                .filter(|line| line.contains("decision=failed") && seen.insert((*line).clone()))
                .map(|line| format!("shim: {}", self.secrets.mask(line))),
        );
        let mut error = error.log(log);
        if is_transient {
            error = error.transient();
        }
        match known_hint {
            // A client root has the host's files there, a container only if they are bound.
            Some(hint) if hint.contains("=/host/") && self.scope.is_none() && !has_host() => {
                error.hint(format!("{hint}; this container has no /host: start it with -v /:/host, or copy the file into it and name that path"))
            }
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Output of a helper that has exited.
pub struct HelperOutput {
    /// Output to stdout and stderr.
    output: Output,
    /// Size of the helper's log file before the run.
    log_offset: u64,
    /// Reports of the shim.
    shim: Vec<String>,
    /// Cgroup of the helper and its daemon, if they have one of their own.
    cgroup: Option<PathBuf>,
}

/// Returns whether there is a directory `/host`.
fn has_host() -> bool {
    Path::new("/host").is_dir()
}

/// Returns the last lines in a log, from an offset on, for which `select` returns text.
fn log_lines(log: &Path, offset: u64, select: fn(&str) -> Option<&str>) -> Vec<String> {
    File::open(log)
        .and_then(|file| last_lines(&file, offset, select))
        .unwrap_or_default()
}

/// Reads the reports that the shim has sent to a socket, 1000 at most.
fn received_reports(socket: &UnixDatagram) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    if socket.set_nonblocking(true).is_ok() {
        while lines.len() < MAX_REPORTS
            && let Ok(length) = socket.recv(&mut buffer)
        {
            lines.push(
                String::from_utf8_lossy(&buffer[..length])
                    .trim_end()
                    .to_owned(),
            );
        }
    }
    lines
}
