//! The crossing: one call, decided and made in a child that shares the caller's memory and nothing else.
//!
//! The child has its own root, current directory and descriptors (a copy), so it can enter the host's namespace
//! whatever threads the caller has, and there is nothing to restore. It decides too, because only it can find
//! out what a path means without disturbing the caller.

use core::ffi::{c_int, c_void};

use crate::area::{Stack, Work};
use crate::call::Call;
use crate::config::Config;
use crate::host;
use crate::namespace::Host;
use crate::policy::{self, Change, Claim, Verdict};
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::text::{Text, split_once};
use crate::walk::fits;

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

/// A decision with all that the report says about it.
pub struct Outcome {
    pub decision: Decision,
    pub reason: &'static str,
    pub step: &'static str,
    pub result: Result<usize>,
    /// Id of the new mount on the host, or 0.
    pub mount: u64,
}

impl Outcome {
    pub fn passed(reason: &'static str) -> Self {
        let (decision, step) = (Decision::Passed, "-");
        Self {
            decision,
            reason,
            step,
            result: Ok(0),
            mount: 0,
        }
    }

    pub fn carried(reason: &'static str, result: usize, mount: u64) -> Self {
        let (decision, step) = (Decision::Carried, "-");
        Self {
            decision,
            reason,
            step,
            result: Ok(result),
            mount,
        }
    }

    pub fn failed(reason: &'static str, failure: Failure) -> Self {
        let Failure { step, error } = failure;
        let (decision, result) = (Decision::Failed, Err(error));
        Self {
            decision,
            reason,
            step,
            result,
            mount: 0,
        }
    }
}

/// Where a crossing stopped, and why.
pub struct Failure {
    pub step: &'static str,
    pub error: Errno,
}

/// For `map_err`: an error of this step.
pub fn at(step: &'static str) -> impl Fn(Errno) -> Failure {
    move |error| Failure { step, error }
}

/// One call on its way to the host.
pub struct Crossing<'a> {
    pub config: &'a Config,
    pub call: &'a Call,
    pub change: Change,
    /// The type of the new mount is one for the host.
    pub named: bool,
    /// The descriptor given instead of a path is a mount of the host.
    pub on_host: bool,
    pub pid: c_int,
    pub work: &'a mut Work,
    /// Where the caller was, while its paths are followed.
    pub origin: Option<Fd>,
    /// What sends the call to the host.
    pub reason: &'static str,
    pub outcome: Outcome,
}

impl Crossing<'_> {
    /// Whether the call goes to the host whatever its target.
    pub fn must_cross(&self) -> bool {
        let named = self.named && self.change == Change::New;
        let operation = self.change.operation();
        named || operation.is_some_and(|operation| self.config.names(operation))
    }
}

/// The claim that the target stands for.
pub struct Claimed {
    pub dir: Fd,
    pub inode: (u32, u32, u64),
}

impl Claimed {
    /// Ids (plain, unique) of the mount that was made for this claim. EINVAL, as for any target that is not
    /// mounted, when there is none: what is mounted there now belongs to somebody else.
    pub fn read_mount(&self, work: &mut Work) -> Result<(u64, u64)> {
        let Work { claim, link, .. } = work;
        const NONE: Errno = Errno(libc::EINVAL);
        set_suffix(claim, b".mount")?;
        let name = claim.as_cstr();
        link.fill(|into| sys::readlink(self.dir.raw(), name, into))
            .map_err(|_| NONE)?;
        policy::parse_claimed_mount(link.as_bytes()).ok_or(NONE)
    }
}

/// Runs the child and returns when it has ended, however it did.
pub fn run(stack: Stack, crossing: &mut Crossing<'_>) {
    let error = Errno(libc::EIO);
    // What stays if the child is killed before it can say more.
    crossing.outcome = Outcome::failed(
        "-",
        Failure {
            step: "call",
            error,
        },
    );
    let share_files = matches!(crossing.change, Change::Handle { .. });
    let argument = (&raw mut *crossing).cast::<c_void>();
    let signals = sys::SignalsBlocked::new();
    let running = stack.enter();
    // SAFETY: signals are blocked, the area's stack is ours alone, and the argument is a `Crossing`.
    let result = unsafe { sys::spawn_and_wait(child, stack.top(), share_files, argument) };
    drop(running);
    drop(signals);
    if let Err(error) = result {
        crossing.outcome = Outcome::failed(
            "-",
            Failure {
                step: "call",
                error,
            },
        );
    }
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes a `Crossing` and does not touch it until this process has ended.
    let crossing = unsafe { &mut *argument.cast::<Crossing<'_>>() };
    crossing.outcome = carry_or_pass(crossing);
    0
}

fn carry_or_pass(c: &mut Crossing<'_>) -> Outcome {
    let parent = sys::parent_pid();
    let orphan = sys::die_with_parent().is_err() || sys::parent_pid() != parent;
    let route = if orphan {
        Err(at("call")(Errno(libc::ESRCH)))
    } else if c.on_host {
        Ok(Route::Carry("descriptor", None))
    } else {
        find_route(c)
    };
    let result = match route {
        Ok(Route::Pass(reason)) => return Outcome::passed(reason),
        Ok(Route::Look { mapped }) => return host::unmount_if_ours(c, mapped),
        Ok(Route::Carry(reason, claimed)) => {
            c.reason = reason;
            carry(c, claimed.as_ref())
        }
        Err(failure) => Err(failure),
    };
    match result {
        Ok((result, mount)) => Outcome::carried(c.reason, result, mount),
        Err(failure) => Outcome::failed(c.reason, failure),
    }
}

fn carry(
    c: &mut Crossing<'_>,
    claimed: Option<&Claimed>,
) -> core::result::Result<(usize, u64), Failure> {
    if c.change == Change::Unmount
        && let Some(claimed) = claimed
    {
        claimed.read_mount(c.work).map_err(at("target"))?;
    }
    find_source(c).map_err(at("target"))?;
    let work = &mut *c.work;
    let name = &mut work.walk.name;
    let mut found = Err(Errno(libc::ENOENT));
    let _ = work.line.fill(|buffer| {
        found = Host::find(c.config, name, buffer);
        Ok::<_, Errno>(0)
    });
    found
        .map_err(at("namespace"))?
        .enter()
        .map_err(at("setns"))?;
    host::make(c, claimed)
}

enum Route {
    Pass(&'static str),
    Carry(&'static str, Option<Claimed>),
    Look { mapped: bool },
}

fn find_route(c: &mut Crossing<'_>) -> core::result::Result<Route, Failure> {
    let place = c.call.place();
    // Relative sources need the directory that following the target leaves.
    c.origin = match c.change {
        Change::Bind | Change::Move => Some(sys::open_dir(CWD, c".").map_err(at("target"))?),
        _ => None,
    };
    let Work {
        walk,
        target,
        host,
        claim,
        link,
        ..
    } = &mut *c.work;
    match walk.canonical(place.dir, place.follow, c.pid, target) {
        Ok(()) => {}
        Err(error) if c.must_cross() || !is_the_kernels_answer(error) => {
            return Err(at("target")(error));
        }
        Err(_) => return Ok(Route::Pass("unresolved")),
    }
    let mut verdict = policy::decide(c.config, c.change, c.named, target.as_bytes());
    if let Verdict::Claim(id) = verdict {
        let read = read_claim(c.config, id, claim, link).map_err(at("target"))?;
        match read.map(|dir| (dir, policy::parse_claim(link.as_bytes()))) {
            Some((_, Some(Claim::Stay))) => return Ok(Route::Pass("stay")),
            Some((dir, Some(Claim::Carry { inode, path }))) => {
                fits(host.set(path)).map_err(at("target"))?;
                return Ok(Route::Carry("claim", Some(Claimed { dir, inode })));
            }
            Some((_, None)) => return Err(at("target")(Errno(libc::EBADMSG))),
            None => {
                verdict = policy::decide_unclaimed(c.config, c.change, c.named, target.as_bytes())
            }
        }
    }
    let (path, route) = match verdict {
        Verdict::Pass | Verdict::Claim(_) => return Ok(Route::Pass("unnamed")),
        Verdict::Carry { reason, host } => (host, Route::Carry(reason, None)),
        Verdict::Look { host, mapped } => (host, Route::Look { mapped }),
    };
    fits(host.set(path)).map_err(at("target"))?;
    Ok(route)
}

/// Whether the real call would fail in the same way, so that nothing is mounted in the wrong place.
fn is_the_kernels_answer(error: Errno) -> bool {
    matches!(
        error.0,
        libc::ENOENT
            | libc::ENOTDIR
            | libc::ELOOP
            | libc::ENAMETOOLONG
            | libc::EACCES
            | libc::EBADF
    )
}

/// The claims directory, if the launcher claims this target; `link` then holds the claim.
fn read_claim(
    config: &Config,
    id: &[u8],
    claim: &mut Text<80>,
    link: &mut Text<8192>,
) -> Result<Option<Fd>> {
    let Some(dir) = config.claims() else {
        return Ok(None);
    };
    fits(link.set(dir))?;
    let dir = sys::open_dir(CWD, link.as_cstr())?;
    fits(claim.set(id) && claim.push(b".claim"))?;
    match link.fill(|into| sys::readlink(dir.raw(), claim.as_cstr(), into)) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno(libc::ENOENT)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Another suffix for the id of a claim.
pub fn set_suffix(claim: &mut Text<80>, suffix: &[u8]) -> Result<()> {
    let id = split_once(claim.as_bytes(), b'.').0.len();
    claim.truncate(id);
    fits(claim.push(suffix))
}

/// Paths among the sources mean paths of the host, as targets do.
fn find_source(c: &mut Crossing<'_>) -> Result<()> {
    let Work {
        walk, source, kind, ..
    } = &mut *c.work;
    let (dir, from, follow) = match *c.call {
        Call::Mount { source, .. } => (CWD, source, true),
        Call::MoveMount {
            from_fd,
            from,
            flags,
            ..
        } if c.change == Change::Move => (from_fd, from, flags & sys::MOVE_MOUNT_F_SYMLINKS != 0),
        _ => return Ok(()),
    };
    if from.is_null() && dir == CWD {
        return Ok(());
    }
    walk.path.clear();
    if !from.is_null() {
        walk.path.fill(|into| sys::copy_string(from, into))?;
    }
    match &c.origin {
        Some(origin) => {
            sys::fchdir(origin.raw())?;
            walk.canonical(dir, follow, c.pid, source)?;
            fits(walk.path.set(source.as_bytes()))?;
        }
        None if policy::is_fuse(kind.as_bytes()) => return Ok(()),
        None => {}
    }
    if let Some(path) = policy::map_host(c.config, walk.path.as_bytes()) {
        fits(source.set(path))?;
    }
    Ok(())
}
