//! The crossing: one call, decided and made in a child that shares the caller's memory and nothing else.
//!
//! The child has its own root, current directory and descriptors (a copy), so it can enter the host's namespace
//! whatever threads the caller has, and there is nothing to restore. It decides too, because only it can find
//! out what a path means without disturbing the caller.

use core::ffi::{c_int, c_void};

use crate::area::{Stack, Work};
use crate::call::Call;
use crate::claim::{self, Claimed};
use crate::config::Config;
use crate::host;
use crate::namespace::enter_host;
use crate::next::Via;
use crate::policy::{self, Change, Claim, Reason, Verdict};
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::walk;

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The caller has to make the real call itself.
    Passed,
    /// Done on the host.
    Carried,
    /// Meant for the host, and not done at all.
    Failed,
}

/// How far a call came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading the settings.
    Settings,
    /// Finding out what the target is.
    Target,
    /// Finding the host's namespace.
    Namespace,
    /// Entering it.
    Setns,
    /// Holding the target there.
    Pin,
    /// The real call, or the child that makes it.
    Call,
    /// Seeing the new mount at the target.
    Proof,
}

/// What the report says about a call.
#[derive(Clone, Copy)]
pub struct Outcome {
    pub decision: Decision,
    pub reason: Reason,
    pub step: Step,
    pub result: Result<usize>,
    /// Id of the new mount on the host, or 0.
    pub mount: u64,
}

impl Outcome {
    pub fn passed(reason: Reason) -> Self {
        let (decision, step) = (Decision::Passed, Step::Call);
        Self {
            decision,
            reason,
            step,
            result: Ok(0),
            mount: 0,
        }
    }

    pub fn failed(step: Step, error: Errno) -> Self {
        let (decision, reason) = (Decision::Failed, Reason::None);
        Self {
            decision,
            reason,
            step,
            result: Err(error),
            mount: 0,
        }
    }
}

/// One call on its way to the host.
pub struct Crossing<'a> {
    pub config: &'a Config,
    pub call: &'a Call,
    pub via: Via,
    pub change: Change,
    /// The type of the new mount is one for the host.
    pub named: bool,
    /// The descriptor given instead of a path is a mount of the host.
    pub on_host: bool,
    /// The descriptor of what is moved is a mount of the host.
    pub from_host: bool,
    pub pid: c_int,
    pub work: &'a mut Work,
    /// Kept up to date on the way, so that an error needs to bring nothing but its number.
    pub outcome: Outcome,
}

impl Crossing<'_> {
    /// Whether the call goes to the host whatever its target.
    #[inline(never)]
    pub fn must_cross(&self) -> bool {
        let operation = self.change.operation();
        (self.named && self.change == Change::New)
            || operation.is_some_and(|operation| self.config.names(operation))
    }

    /// From here on paths are the host's.
    #[inline(never)]
    pub fn enter_host(&mut self) -> Result<()> {
        enter_host(self.config, &mut self.work.path, &mut self.outcome.step)
    }
}

/// Runs the child and returns when it has ended, however it did.
pub fn run(stack: Stack, crossing: &mut Crossing<'_>) {
    // What stays if the child is killed before it can say more.
    crossing.outcome = Outcome::failed(Step::Call, Errno::IO);
    let share_files = matches!(crossing.change, Change::Handle { .. });
    let argument = (&raw mut *crossing).cast::<c_void>();
    let signals = sys::SignalsBlocked::new();
    let running = stack.enter();
    // SAFETY: signals are blocked, the stack is ours alone, and the argument is a `Crossing`.
    let result = unsafe { sys::spawn_and_wait(child, stack.top(), share_files, argument) };
    drop(running);
    drop(signals);
    if let Err(error) = result {
        crossing.outcome = Outcome::failed(Step::Call, error);
    }
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes a `Crossing` and does not touch it until this process has ended.
    let crossing = unsafe { &mut *argument.cast::<Crossing<'_>>() };
    let result = carry_or_pass(crossing);
    let outcome = &mut crossing.outcome;
    (outcome.decision, outcome.result) = match result {
        Ok(Some(result)) => (Decision::Carried, Ok(result)),
        Ok(None) => (Decision::Passed, Ok(0)),
        Err(error) => (Decision::Failed, Err(error)),
    };
    0
}

/// The result of the call on the host, or nothing when it is the caller's.
#[inline(never)]
fn carry_or_pass(c: &mut Crossing<'_>) -> Result<Option<usize>> {
    let parent = sys::parent_pid();
    sys::die_with_parent()?;
    if sys::parent_pid() != parent {
        return Err(Errno::SRCH);
    }
    c.outcome.step = Step::Target;
    // Relative sources need the directory that following the target leaves.
    let origin = match c.change {
        Change::Bind | Change::Move => Some(sys::open_dir(CWD, c".")?),
        _ => None,
    };
    let claimed = match find_route(c)? {
        Route::Pass => return Ok(None),
        Route::Look { mapped } => return host::unmount_if_ours(c, mapped),
        Route::Carry(claimed) => claimed,
    };
    if c.change == Change::Unmount
        && let Some(claimed) = &claimed
    {
        claimed.read_mount(c.work)?;
    }
    find_source(c, origin)?;
    c.enter_host()?;
    host::make(c, claimed.as_ref()).map(Some)
}

enum Route {
    Pass,
    Carry(Option<Claimed>),
    Look { mapped: bool },
}

#[inline(never)]
fn find_route(c: &mut Crossing<'_>) -> Result<Route> {
    if c.on_host {
        c.outcome.reason = Reason::Descriptor;
        return Ok(Route::Carry(None));
    }
    let place = c.call.place();
    let must_cross = c.must_cross();
    let (config, change, named) = (c.config, c.change, c.named);
    let Work {
        path,
        name,
        target,
        host,
        claim,
        line,
        ..
    } = &mut *c.work;
    let reason = &mut c.outcome.reason;
    if let Err(error) = walk::canonical(path, name, place.dir, place.follow, c.pid, target) {
        *reason = Reason::Unresolved;
        return if must_cross || !is_the_kernels_answer(error) {
            Err(error)
        } else {
            Ok(Route::Pass)
        };
    }
    let mut verdict = policy::decide(config, change, named, target.as_bytes());
    if let Verdict::Claim(id) = verdict {
        *reason = Reason::Claim;
        claim.set(id);
        if let Some(dir) = claim::read(config, claim, line)? {
            return match policy::parse_claim(line.as_bytes()) {
                Some(Claim::Stay) => Ok(Route::Pass),
                Some(Claim::Carry { inode, path }) => {
                    host.set(path);
                    Ok(Route::Carry(Some(Claimed { dir, inode })))
                }
                None => Err(Errno::BADMSG),
            };
        }
        verdict = policy::decide_unclaimed(config, change, named, target.as_bytes());
    }
    let (path, route) = match verdict {
        Verdict::Carry { reason: why, host } => {
            *reason = why;
            (host, Route::Carry(None))
        }
        Verdict::Look { host, mapped } => (host, Route::Look { mapped }),
        Verdict::Pass | Verdict::Claim(_) => {
            *reason = Reason::Unnamed;
            return Ok(Route::Pass);
        }
    };
    host.set(path);
    Ok(route)
}

/// Whether the real call would fail in the same way, so that nothing is mounted in the wrong place.
fn is_the_kernels_answer(error: Errno) -> bool {
    matches!(
        error,
        Errno::ACCES
            | Errno::BADF
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::NOENT
            | Errno::NOTDIR
    )
}

/// Paths among the sources mean paths of the host, as targets do.
#[inline(never)]
fn find_source(c: &mut Crossing<'_>, origin: Option<Fd>) -> Result<()> {
    let Work {
        path,
        name,
        source,
        kind,
        ..
    } = &mut *c.work;
    let (dir, from, follow) = match *c.call {
        Call::Mount { source, .. } if !source.is_null() => (CWD, source, true),
        Call::MoveMount {
            from_fd,
            from,
            flags,
            ..
        } if c.change == Change::Move && !c.from_host => {
            (from_fd, from, flags & sys::MOVE_MOUNT_F_SYMLINKS != 0)
        }
        _ => return Ok(()),
    };
    sys::copy_string_or_none(from, path)?;
    if let Some(origin) = origin {
        sys::fchdir(origin.raw())?;
        walk::canonical(path, name, dir, follow, c.pid, source)?;
        path.set(source.as_bytes());
    } else if policy::is_fuse(kind.as_bytes()) {
        return Ok(());
    }
    if let Some(mapped) = policy::map_host(c.config, path.as_bytes()) {
        source.set(mapped);
    }
    Ok(())
}
