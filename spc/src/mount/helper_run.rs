//! Runs a helper: directly, bounded in time, killable, with its output kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Pid;

use crate::error::{Class, Error, Reason, Result, errno_text, show};
use crate::helper::program::Program;
use crate::helper::secret_fds::Handover;
use crate::host::cgroup;
use crate::host::redirect::Claim;
use crate::kinds::model::{Helper, Telling};
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
pub struct Run<'a> {
    /// Its program.
    pub program: &'a Path,
    /// Its arguments.
    argv: Vec<String>,
    /// Variables of its environment.
    env: &'a [(&'static str, String)],
    /// It is told that the kernel keeps no keys.
    no_keys: bool,
    /// The claim whose stand-in it mounts on.
    claim: &'a Claim,
    /// Mark for its processes.
    id: &'a str,
    /// Its own log file, if it has one.
    log: Option<PathBuf>,
    /// How its failures are told.
    telling: Telling,
    /// The target on the host, which it knows by its stand-in.
    target: &'a Path,
    /// What it is given besides arguments.
    handover: &'a Handover<'a>,
    /// What must not be repeated of what it says.
    secrets: &'a Secrets,
    /// The cgroup of its own that it and its daemon get, unless they end with the container.
    scope: Option<Scope>,
}

/// A cgroup on the host.
struct Scope {
    name: String,
    /// What it is for, for people.
    description: String,
}

impl Scope {
    /// The cgroup of its own for what a mount with a client root leaves running.
    fn of(record: &Record) -> Option<Self> {
        let target = Path::new(&record.target);
        let (fs_type, source) = (&record.fs_type, &record.source);
        record.root.is_some().then(|| Self {
            name: cgroup::name_of(target),
            description: format!("spc: {fs_type} {source} on {}", show(target)),
        })
    }
}

impl<'a> Run<'a> {
    /// The helper of a plan, which is to mount on the stand-in of a claim.
    pub fn of(
        plan: &'a Plan,
        (helper, program): (&'a Helper, &'a Program),
        claim: &'a Claim,
        handover: &'a Handover<'a>,
        record: &Record,
    ) -> Self {
        let stand_in = claim.stand_in().to_string_lossy();
        Self {
            program: &program.path,
            argv: plan.argv(&stand_in, |key| handover.number(key)),
            env: &helper.env,
            no_keys: helper.no_keys,
            claim,
            id: &plan.id,
            log: helper.log.as_ref().map(PathBuf::from),
            telling: plan.chosen.telling,
            target: &plan.target,
            handover,
            secrets: &plan.request.secrets,
            scope: Scope::of(record),
        }
    }

    /// Runs the helper to its end, and gives back what it said. What it leaves running afterwards is the mount's daemon.
    /// `meanwhile` is done when it has begun.
    ///
    /// # Errors
    /// It cannot be started, fails, dies by a signal, takes too long, or a signal stops us.
    pub fn to_end(
        &self,
        deadline: Instant,
        interrupts: &Interrupts,
        meanwhile: impl FnOnce(),
    ) -> Result<Said> {
        let name = self.program.display().to_string();
        let start_of_log = self
            .log
            .as_ref()
            .and_then(|log| log.metadata().ok())
            .map_or(0, |m| m.len());
        let fail = |cause: String| Error::mount(format!("{name} failed")).because(cause);
        let output = Output::new().map_err(|e| fail(errno_text(e)))?;
        let reports = UnixDatagram::bind(self.claim.report()).map_err(|e| fail(errno_text(e)))?;
        let started = Instant::now();
        let mut command = Command::new(self.program);
        command
            .args(&self.argv)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("LD_PRELOAD", SHIM)
            .env(marks::MARK, self.id)
            .env("SPC_REPORT", self.claim.report())
            .stdin(Stdio::null())
            .stdout(output.handle().map_err(|e| fail(errno_text(e)))?)
            .stderr(output.handle().map_err(|e| fail(errno_text(e)))?);
        log::hand_on(&mut command);
        self.handover.apply(&mut command)?;
        tracing::debug!(helper = %name, argv = ?self.argv, "running");
        if self.no_keys {
            sys::without_call(&mut command, libc::SYS_add_key);
        }
        let child = match &self.scope {
            Some(Scope { name, description }) => {
                cgroup::start(name, description, &mut command, sys::tie_to_parent)?
            }
            None => {
                let spawned = sys::tie_to_parent(&mut command).spawn();
                Pid::from_child(&spawned.map_err(|e| fail(errno_text(e)))?)
            }
        };
        let cgroup = self.scope.as_ref().and_then(|_| cgroup::of(child));
        meanwhile();
        let ended = wait(child, &name, started, deadline, Some(interrupts));
        output.seal();
        let shim = reports_of(&reports);
        // What the daemon's shim says later goes to the log of `spc serve`.
        let _ = std::fs::remove_file(self.claim.report());
        for line in &shim {
            tracing::debug!(shim = %self.secrets.mask(line), "decision");
        }
        let said = Said {
            output,
            start_of_log,
            shim,
            cgroup,
        };
        let failed = match ended.map(describe) {
            Ok(Ended::Code(0)) => return Ok(said),
            Ok(Ended::Code(code)) => fail(format!("exit status {code}")).reason_is(Reason::Helper),
            Ok(Ended::Signal(signal)) => {
                fail(format!("killed by signal {signal}")).reason_is(Reason::Helper)
            }
            Err(error) if error.class() == Class::Interrupted => return Err(error),
            Err(error) => {
                let failed = fail(error.summary()).reason_is(error.reason());
                match error.hint_text() {
                    Some(hint) => failed.hint(hint),
                    None => failed,
                }
            }
        };
        Err(self.tell(failed, &said))
    }

    /// Whether it has logged in this run that it is about to end.
    pub fn gave_up(&self, said: &Said) -> bool {
        let (Some(file), Some(words)) = (&self.log, self.telling.gives_up) else {
            return false;
        };
        errors_in(file, said.start_of_log, self.telling.line)
            .iter()
            .any(|line| line.contains(words))
    }

    /// The processes that it has left running, by their ids in the container.
    ///
    /// # Errors
    /// They cannot be looked for.
    pub fn daemon(&self, said: &Said) -> std::io::Result<Vec<i32>> {
        match &said.cgroup {
            Some(cgroup) => marks::daemons_in(cgroup, self.id),
            None => marks::daemons(self.id),
        }
    }

    /// Adds to an error what the helper said, and what is known about that.
    pub fn tell(&self, error: Error, said: &Said) -> Error {
        let mut log = said.output.last_lines(self.telling.line);
        if let Some(file) = &self.log {
            log.extend(errors_in(file, said.start_of_log, self.telling.line));
        }
        let mut seen = BTreeSet::new();
        log.retain(|line| seen.insert(line.clone()));
        let hints = self.telling.hints.iter();
        let known = hints.filter(|(words, _)| log.iter().any(|line| line.contains(words)));
        let known = known.map(|(_, hint)| *hint).next();
        let (stand_in, target) = (self.claim.stand_in().to_string_lossy(), show(self.target));
        for line in &mut log {
            *line = self.secrets.mask(&line.replace(&*stand_in, &target));
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
pub struct Said {
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
